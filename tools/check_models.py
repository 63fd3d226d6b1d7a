"""Tries every architecture of timm and writes docs/backbones.md: python tools/check_models.py --write docs/backbones.md

An hour or so of one core (1.7 s a name on a busy machine, and 100 proofs); what --records holds is not tried again.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout runs without being installed

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--records", type=Path, default=Path("runs/survey"), help="folder of what was found (runs/survey)")
parser.add_argument("--write", type=Path, help="the page to write")
parser.add_argument("--as-it-is", action="store_true", help="try nothing, write the page from the records there are")


def main(chosen) -> None:
    import warnings

    from a2mim.check.page import write_page
    from a2mim.check.survey import read_records, survey_all

    warnings.simplefilter("ignore")  # of timm, about names that it will drop
    if chosen.as_it_is:
        records = [read_records(chosen.records / f"{kind}.jsonl") for kind in ("wired", "proved")]
    else:
        records = survey_all(chosen.records)
    page = write_page(*records)
    if chosen.write:
        chosen.write.write_text(page, encoding="utf-8")
    else:
        print(page)


if __name__ == "__main__":
    main(parser.parse_args())

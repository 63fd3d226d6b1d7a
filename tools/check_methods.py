"""Tries every method on every family of networks: python tools/check_methods.py --write docs/methods_matrix.md

About two hours of one core and 14 GiB; what --records holds is not tried again.
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

    from a2mim.check.matrix import read_cells, smallest_members, survey_methods, write_matrix
    from a2mim.check.methods import group
    from a2mim.engine.rows import shipped_rows

    warnings.simplefilter("ignore")  # of timm, about names that it will drop
    methods, path = group(shipped_rows()), chosen.records / "methods.jsonl"
    cells = read_cells(path) if chosen.as_it_is else survey_methods(path, methods, smallest_members())
    page = write_matrix(methods, cells)
    if chosen.write:
        chosen.write.write_text(page, encoding="utf-8")
    else:
        print(page)


if __name__ == "__main__":
    main(parser.parse_args())

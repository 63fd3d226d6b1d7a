"""`a2mim analyze`: the analyses that the A²MIM paper makes, of any encoder, beside the untrained network."""

from __future__ import annotations

import argparse
from pathlib import Path

from a2mim.commands.arguments import (
    DATA_HELP,
    SOURCE_HELP,
    CommaList,
    access_of,
    add_img_size,
    add_machine,
    add_reading,
    one_or_list,
    reading_of,
    size_of,
)

WHAT_HELP = "interactions, fourier, occlusion, rank, duplicates, with commas between (default: all)"


def add_analyze(commands) -> None:
    p = commands.add_parser(
        "analyze",
        help="look at what a network has learnt: interactions, spectra, occlusion, rank; and for near-duplicates",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Looks at what a network has learnt, always beside the untrained one.\n\n"
        "  a2mim analyze runs/a2mim_xcit --data photos\n"
        "  a2mim analyze runs/a2mim_xcit --what interactions --data FOLDER --samples 20\n\n"
        "Results go to analysis/ in the run, as JSON, PNG and SVG, and into its report. A command that was killed\n"
        "goes on where it was. docs/analysis.md says what each number means.",
    )
    p.add_argument("source", help=SOURCE_HELP)
    p.add_argument("--what", action=CommaList, default=[], metavar="NAMES", help=WHAT_HELP)
    p.add_argument("--data", nargs="+", action="extend", required=True, help=f"images: {DATA_HELP}")
    p.add_argument("--test-data", nargs="+", action="extend", help="images to look at (default: the test part of DATA)")
    p.add_argument("--samples", type=int, help="images of the interactions (default: for about ten minutes in all)")
    p.add_argument("--paper", action="store_true", help="50 pairs and 50 contexts an image, as in the paper")
    p.add_argument("--out", help="folder of the results (default: analysis/ in the run)")
    add_img_size(p, "the encoder's")
    p.add_argument("--seed", type=int, default=0, help="of the untrained weights and of every choice (0)")
    add_reading(p)
    add_machine(p, num_workers=0)
    p.set_defaults(run=run_analyze)


def run_analyze(chosen) -> None:
    from a2mim.analysis.analyze import WHAT, Amount, analyze
    from a2mim.analysis.subjects import Subjects
    from a2mim.report import write_report
    from a2mim.report.analysis_files import write_figures

    amount = Amount(chosen.samples, chosen.paper)
    if unknown := [name for name in chosen.what if name not in WHAT]:
        raise ValueError(f"--what {unknown[0]} is unknown: choose among {', '.join(WHAT)}")
    run = Path(chosen.source)
    if not chosen.out and not run.is_dir():
        raise ValueError(f"{chosen.source} is no folder: add --out FOLDER, where the results shall lie")
    folder = Path(chosen.out) if chosen.out else run / "analysis"
    subjects = Subjects(
        chosen.source,
        one_or_list(chosen.data),
        one_or_list(chosen.test_data),
        size_of(chosen),
        chosen.seed,
        chosen.device,
        access_of(chosen),
        reading_of(chosen),
    )
    print(f"looking at {subjects.test.describe()}, beside the untrained network", flush=True)
    chosen.result = files = analyze(
        subjects, chosen.what or list(WHAT), folder, amount, lambda text: print(text, flush=True)
    )
    write_figures(files)
    if folder == run / "analysis" and (run / "summary.json").is_file():
        print(f"report  {write_report([run], run / 'report.html')}")

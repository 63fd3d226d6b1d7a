"""`a2mim export`: an encoder handed over, with a receipt; `a2mim verify`: the receipt's proof, repeated."""

from __future__ import annotations

import sys

from a2mim.commands.arguments import (
    SOURCE_HELP,
    CommaList,
    access_of,
    add_debug,
    add_machine,
    add_reading,
    one_or_list,
    reading_of,
)
from a2mim.text import one_line

TARGETS_HELP = (
    "targets, separated by commas: timm, transformers, torchvision, mmpretrain, mmdet, mmseg, detectron2, ultralytics,"
    " onnx, torch-export, torchscript, pyramid, safetensors; or all, for every one that can take the encoder"
)
PYTHON_HELP = "interpreter that loads the export, e.g. of an environment with the target (default: this one)"


def add_export(commands) -> None:
    p = commands.add_parser("export", help="hand an encoder to another toolkit, proven equal", allow_abbrev=False)
    p.add_argument("source", help=SOURCE_HELP)
    p.add_argument("--to", action=CommaList, default=["timm"], metavar="NAMES", help=TARGETS_HELP)
    p.add_argument("--out", help="folder, one below it for each target (default: export/ in the run)")
    p.add_argument(
        "--data", nargs="+", action="extend", help="images that BatchNorm is calibrated on (default: the run's own)"
    )
    p.add_argument("--no-calibration", action="store_true", help="leave BatchNorm's statistics as they are")
    p.add_argument("--license", default="", help="of the weights, as model hubs spell it (default: none is stated)")
    p.add_argument("--python", default=sys.executable, help=PYTHON_HELP)
    add_reading(p)
    add_machine(p, num_workers=0)
    p.set_defaults(run=run_export)


def run_export(chosen) -> None:
    from a2mim.export.command import export_calibrated

    chosen.result = receipts = export_calibrated(
        chosen.source,
        chosen.to,
        chosen.out,
        one_or_list(chosen.data),
        chosen.num_workers,
        calibrate=not chosen.no_calibration,
        device=chosen.device,
        access=access_of(chosen),
        reading=reading_of(chosen),
        license=chosen.license,
        python=chosen.python,
    )
    for receipt in receipts:
        print(one_line(tell(receipt)))


def add_verify(commands) -> None:
    p = commands.add_parser("verify", help="repeat the proof of an export", allow_abbrev=False)
    p.add_argument("folder", help="an exported folder, or one that holds several")
    p.add_argument("--network", help="dotted path of a network of your own, which may then be imported")
    p.add_argument("--python", default=sys.executable, help=PYTHON_HELP)
    add_debug(p)
    p.set_defaults(run=run_verify)


def run_verify(chosen) -> None:
    from a2mim.export.verify import verify

    chosen.result = verify(chosen.folder, chosen.python, chosen.network)
    for found in chosen.result:
        print(one_line(tell(found)))


def tell(found: dict) -> str:
    """One line on one folder."""
    if "withheld" in found:
        return (
            f"{found['folder']}: the tensors are those of the receipt; {found['withheld']} was not imported, since only"
            " you may choose code to run: name it with --network to load it"
        )
    if found["mode"] == "contract only":
        absent = ", ".join(found["not_installed"])
        return (
            f"{found['folder']}: contract only, as {absent} is not installed: keys and shapes are those that"
            f" {found['target']} documents"
        )
    difference = f"largest difference {found['largest_difference']:.1e}"
    return f"{found['folder']}: {found['target']} computes the same features ({difference}, see receipt.json)"

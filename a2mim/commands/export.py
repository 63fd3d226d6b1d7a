"""`a2mim export`: an encoder handed over, with a receipt."""

from __future__ import annotations

from a2mim.commands.arguments import SOURCE_HELP, add_machine, one_or_list


def add_export(commands) -> None:
    p = commands.add_parser("export", help="hand an encoder to another toolkit, proven equal", allow_abbrev=False)
    p.add_argument("source", help=SOURCE_HELP)
    p.add_argument("--to", default="timm", help="targets, separated by commas: timm")
    p.add_argument("--out", help="folder (default: export/ in the run)")
    p.add_argument("--data", nargs="+", help="images that BatchNorm is calibrated on (default: the run's own)")
    add_machine(p, num_workers=0)
    p.set_defaults(run=run_export)


def run_export(chosen) -> None:
    from a2mim.export.command import export_calibrated

    data = one_or_list(chosen.data)
    for receipt in export_calibrated(chosen.source, chosen.to.split(","), chosen.out, data, chosen.num_workers):
        difference = f"largest difference {receipt['largest_difference']:.1e}"
        print(f"{receipt['folder']}: {receipt['target']} computes the same features ({difference}, see receipt.json)")

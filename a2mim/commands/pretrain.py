"""`a2mim pretrain`: a recipe becomes an encoder."""

from __future__ import annotations

from a2mim.commands.arguments import DATA_HELP, SOURCE_HELP
from a2mim.commands.training import add_run_flags, launch, options_of


def add_pretrain(commands) -> None:
    p = commands.add_parser("pretrain", help="pre-train an encoder from a recipe", allow_abbrev=False)
    p.add_argument("config", help="a recipe, e.g. configs/a2mim_xcit.py")
    p.add_argument(
        "--data", nargs="+", action="extend", help=f"{DATA_HELP}; none: laptop scale, on built-in photographs"
    )
    p.add_argument(
        "--test-data", nargs="+", action="extend", help="labelled images to judge the encoder on, before and after"
    )
    p.add_argument("--init-from", metavar="SOURCE", help=f"weights that the encoder starts from: {SOURCE_HELP}")
    p.add_argument("--allow-partial", action="store_true", help="start also from a file that lacks some of them")
    add_run_flags(p)
    p.set_defaults(run=run_pretrain)


def run_pretrain(chosen) -> int:
    options = options_of(chosen)
    if chosen.init_from is not None:
        options["init_from"] = chosen.init_from
    if chosen.allow_partial:
        options["allow_partial"] = True

    from a2mim.engine.config import load_config

    if not chosen.resume:  # mistakes are answered before torch is imported
        load_config(chosen.config, options, chosen.laptop or chosen.data is None)

    from a2mim.engine.run import pretrain

    return launch(pretrain, chosen, options, chosen.config)

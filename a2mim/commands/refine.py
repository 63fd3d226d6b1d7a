"""`a2mim refine`: a pre-trained encoder becomes one whose features tell images apart."""

from __future__ import annotations

from pathlib import Path

from a2mim.commands.arguments import DATA_HELP, SOURCE_HELP
from a2mim.commands.training import add_run_flags, launch, options_of

RECIPE = "refine/last_third"


def add_refine(commands) -> None:
    p = commands.add_parser("refine", help="refine a pre-trained encoder by contrast of crops", allow_abbrev=False)
    p.add_argument("source", nargs="?", help=f"the encoder: {SOURCE_HELP}; none with --resume")
    p.add_argument("--recipe", default=None, help=f"a recipe, e.g. configs/refine/mae_ct.py (default: {RECIPE})")
    p.add_argument(
        "--data", nargs="+", action="extend", help=f"{DATA_HELP}; none: laptop scale, on built-in photographs"
    )
    p.add_argument(
        "--test-data", nargs="+", action="extend", help="labelled images to judge the encoder on, before and after"
    )
    p.add_argument("--allow-partial", action="store_true", help="take a source that lacks some of the model's weights")
    add_run_flags(p)
    p.set_defaults(several="run", run=run_refine)


def run_refine(chosen) -> int:
    options = options_of(chosen)
    if chosen.allow_partial:
        options["allow_partial"] = True
    recipe = chosen.recipe or RECIPE

    from a2mim.engine.config import load_config
    from a2mim.engine.refine_settings import RefineSettings

    if chosen.source is not None and Path(chosen.source).suffix == ".py":
        raise ValueError(
            f"{chosen.source} is a recipe, and refine takes the encoder there: a2mim refine SOURCE --recipe"
            f" {chosen.source}"
        )
    if not chosen.resume:  # mistakes are answered before torch is imported
        load_config(recipe, options, chosen.laptop or chosen.data is None, kind=RefineSettings)

    from a2mim.engine.run import refine

    def start(source, data, work_dir, **arguments):
        return refine(source, data, work_dir, config=recipe, **arguments)

    return launch(start, chosen, options, chosen.source)

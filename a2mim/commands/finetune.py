"""`a2mim finetune`: an encoder becomes a classifier, and is judged by it."""

from __future__ import annotations

import math

from a2mim.commands.arguments import DATA_HELP, SOURCE_HELP, add_reading
from a2mim.commands.training import add_run_flags, launch, options_of


def add_finetune(commands) -> None:
    p = commands.add_parser("finetune", help="train an encoder end to end as a classifier", allow_abbrev=False)
    p.add_argument("config", nargs="?", help="a recipe, e.g. configs/finetune/mae_finetune.py; none with --protocol")
    p.add_argument("source", nargs="?", help=f"the encoder: {SOURCE_HELP}; none with --resume")
    p.add_argument("--protocol", help="instead of a recipe: mae-finetune, simmim-finetune, rsb-a2, rsb-a3, …")
    p.add_argument(
        "--data", nargs="+", action="extend", help=f"labelled {DATA_HELP}; none: laptop scale, on built-in photographs"
    )
    p.add_argument(
        "--test-data",
        nargs="+",
        action="extend",
        help="labelled test images (default: the test/ beside the train/ of --data)",
    )
    few = p.add_mutually_exclusive_group()
    few.add_argument("--label-fraction", type=float, metavar="F", help="train on this share of each class, e.g. 0.1")
    few.add_argument("--per-class", type=int, metavar="N", help="train on so many images of each class")
    p.add_argument("--allow-partial", action="store_true", help="take a source that lacks some of the model's weights")
    add_reading(p)
    add_run_flags(p)
    p.set_defaults(several="run", run=run_finetune)


def run_finetune(chosen) -> int:
    config, source = recipe_and_source(chosen)
    options = finetune_options(chosen)

    from a2mim.engine.config import load_config
    from a2mim.engine.finetune_settings import FinetuneSettings

    if not chosen.resume:  # mistakes are answered before torch is imported
        load_config(config, options, chosen.laptop or chosen.data is None, kind=FinetuneSettings)

    from a2mim.engine.run import finetune

    return launch(finetune, chosen, options, config, source)


def recipe_and_source(chosen) -> tuple[str, str | None]:
    """With --protocol the only word is the source; a protocol's name is that of its recipe."""
    if chosen.protocol is None:
        if chosen.config is None:
            raise ValueError("give a recipe and a source, or --protocol NAME and a source")
        return chosen.config, chosen.source
    if chosen.source is not None:
        raise ValueError(
            f"--protocol {chosen.protocol} takes the place of the recipe {chosen.config}: give one of them"
        )
    return chosen.protocol, chosen.config


def finetune_options(chosen) -> dict:
    """The dotted settings that the command line changes."""
    read = {key: getattr(chosen, key) for key in ("bits", "exif", "value_range", "nodata", "fill")}
    read["nodata"] = "nan" if chosen.nodata is not None and math.isnan(chosen.nodata) else chosen.nodata
    options = {f"data.{key}": value for key, value in read.items() if value is not None}  # a resumed run knows them
    options |= options_of(chosen)
    if chosen.allow_partial:
        options["classifier.allow_partial"] = True
    if chosen.label_fraction is not None:
        if not 0 < chosen.label_fraction <= 1:
            raise ValueError(f"--label-fraction {chosen.label_fraction} must be above 0 and at most 1, e.g. 0.1")
        options["labels.subset"] = f"{100 * chosen.label_fraction:g}%"
    if chosen.per_class is not None:
        if chosen.per_class < 1:
            raise ValueError(f"--per-class {chosen.per_class} must be at least 1")
        options["labels.subset"] = str(chosen.per_class)
    return options

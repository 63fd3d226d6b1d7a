"""`a2mim finetune`: an encoder becomes a classifier, and is judged by it."""

from __future__ import annotations

import math

from a2mim.commands.arguments import DATA_HELP, SOURCE_HELP, access_of, add_machine, add_reading, one_or_list


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
    p.add_argument("--laptop", action="store_true", default=None, help="the recipe's laptop scale, also with --data")
    few = p.add_mutually_exclusive_group()
    few.add_argument("--label-fraction", type=float, metavar="F", help="train on this share of each class, e.g. 0.1")
    few.add_argument("--per-class", type=int, metavar="N", help="train on so many images of each class")
    p.add_argument("--allow-partial", action="store_true", help="take a source that lacks some of the model's weights")
    p.add_argument("--work-dir", help="the run's folder (default: the first free runs/<recipe>)")
    p.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    p.add_argument(
        "--next-epoch", action="store_true", help="with --resume: where the data changed, start the next epoch with it"
    )
    p.add_argument(
        "--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings to change, dotted"
    )
    p.add_argument("--seed", type=int, help="of every random number (default: the recipe's)")
    add_reading(p)
    add_machine(p, num_workers=None)
    p.set_defaults(run=run_finetune)


def run_finetune(chosen) -> int:
    config, source = recipe_and_source(chosen)
    options = options_of(chosen)

    from a2mim.engine.config import load_config
    from a2mim.engine.finetune_settings import FinetuneSettings

    if not chosen.resume:  # mistakes are answered before torch is imported
        load_config(config, options, chosen.laptop or chosen.data is None, kind=FinetuneSettings)

    from a2mim.engine.run import finetune

    summary = finetune(
        config,
        source,
        one_or_list(chosen.data),
        chosen.work_dir,
        test_data=one_or_list(chosen.test_data),
        laptop=chosen.laptop,
        resume=chosen.resume,
        next_epoch=chosen.next_epoch,
        num_workers=chosen.num_workers,
        device=chosen.device,
        access=access_of(chosen),
        **options,
    )
    return 128 + summary["signal"] if summary["status"] == "stopped" else 0


def recipe_and_source(chosen) -> tuple[str, str | None]:
    """With --protocol the only word is the source; the recipe of the protocol's name goes before its bare constants, as
    it has a laptop scale of its own.
    """
    if chosen.protocol is None:
        if chosen.config is None:
            raise ValueError("give a recipe and a source, or --protocol NAME and a source")
        return chosen.config, chosen.source
    if chosen.source is not None:
        raise ValueError(
            f"--protocol {chosen.protocol} takes the place of the recipe {chosen.config}: give one of them"
        )
    from a2mim.engine.recipes import recipes_folder

    recipe = recipes_folder() / "finetune" / f"{chosen.protocol.replace('-', '_')}.py"
    return str(recipe) if recipe.is_file() else chosen.protocol, chosen.config


def options_of(chosen) -> dict:
    from a2mim.engine.config import parse_options

    read = {key: getattr(chosen, key) for key in ("bits", "exif", "value_range", "nodata", "fill")}
    read["nodata"] = "nan" if chosen.nodata is not None and math.isnan(chosen.nodata) else chosen.nodata
    options = {f"data.{key}": value for key, value in read.items() if value is not None}  # a resumed run knows them
    options |= parse_options(chosen.cfg_options)
    if chosen.seed is not None:
        options["seed"] = chosen.seed
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

"""`a2mim pretrain`: a recipe becomes an encoder; without a recipe, `--model` makes one by rule."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from a2mim.commands.arguments import DATA_HELP, SOURCE_HELP, access_of, one_or_list
from a2mim.commands.training import add_run_flags, launch, options_of


def add_pretrain(commands) -> None:
    p = commands.add_parser("pretrain", help="pre-train an encoder from a recipe", allow_abbrev=False)
    p.add_argument("config", nargs="?", help="a recipe: a file, or the name of one that ships with a2mim")
    p.add_argument(
        "--model", metavar="NAME", help="instead of a recipe: a network of timm or your own; the recipe is made by rule"
    )
    p.add_argument("--keep", metavar="FILE", help="with --model: write the recipe that is made to this file")
    p.add_argument(
        "--data", nargs="+", action="extend", help=f"{DATA_HELP}; none: laptop scale, on built-in photographs"
    )
    p.add_argument(
        "--test-data", nargs="+", action="extend", help="labelled images to judge the encoder on, before and after"
    )
    p.add_argument("--init-from", metavar="SOURCE", help=f"weights that the encoder starts from: {SOURCE_HELP}")
    p.add_argument("--allow-partial", action="store_true", help="start also from a file that lacks some of them")
    add_run_flags(p)
    p.set_defaults(several="run", run=run_pretrain, refuse=p.error)


def run_pretrain(chosen) -> int:
    if chosen.config is None and chosen.model is None:
        chosen.refuse("give a recipe, e.g. a2mim_xcit (`a2mim recipes` lists them), or --model NAME")
    if chosen.config is not None and chosen.model is not None:
        raise ValueError(f"--model {chosen.model} takes the place of the recipe {chosen.config}: give one of them")
    if chosen.keep and chosen.model is None:
        raise ValueError("--keep writes the recipe that --model makes: add --model NAME, or leave it out")
    options = options_of(chosen)
    if chosen.init_from is not None:
        options["init_from"] = chosen.init_from
    if chosen.allow_partial:
        options["allow_partial"] = True

    from a2mim.engine.config import load_config

    recipe = made_by_rule(chosen, options) if chosen.model is not None else chosen.config
    if not chosen.resume:  # mistakes are answered before torch is imported
        load_config(recipe, options, chosen.laptop or chosen.data is None)

    from a2mim.engine.run import pretrain

    return launch(pretrain, chosen, options, recipe)


def made_by_rule(chosen: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """The recipe for the network and the images of the command line. It is printed, so that it can be kept."""
    from a2mim.data import open_dataset
    from a2mim.engine.rules import recipe_for, text_of
    from a2mim.files import write_text

    if chosen.resume is True:  # the run has its own settings
        return {"model": {"encoder": {"name": chosen.model}}}
    source = "photos" if chosen.data is None else one_or_list(chosen.data)
    data = open_dataset(source, in_chans=options.get("data.in_chans", 3), access=access_of(chosen))
    images = None if data.stream else len(data)
    recipe = recipe_for(chosen.model, images)
    text = text_of(recipe, images)
    if chosen.keep:
        if Path(chosen.keep).exists():
            raise ValueError(f"--keep {chosen.keep} exists; choose another file, or delete it")
        write_text(chosen.keep, text)
    if int(os.environ.get("RANK", 0)) == 0:
        where = f"it is kept in {chosen.keep}" if chosen.keep else "keep it in a file to change it"
        print(f"no recipe given; by rule, {chosen.model} gets this one ({where}):\n\n{text}", flush=True)
    return recipe

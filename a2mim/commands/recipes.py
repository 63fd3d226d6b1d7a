"""`a2mim recipes`: what ships with a2mim, and a copy of one to edit."""

from __future__ import annotations

import shlex
from pathlib import Path

from a2mim.commands.arguments import add_debug


def add_recipes(commands) -> None:
    p = commands.add_parser("recipes", help="list the recipes that ship with a2mim, or copy one here to edit it")
    p.add_argument("--copy", metavar="NAME", help="write this recipe, with its base resolved, to NAME.py here")
    p.add_argument("--out", help="with --copy: the file to write")
    add_debug(p)
    p.set_defaults(several="print", run=run_recipes)


def run_recipes(chosen) -> None:
    from a2mim.engine.recipes import shipped_recipes

    if chosen.copy:
        chosen.result = {"recipe": copy_recipe(chosen.copy, chosen.out)}
        return
    if chosen.out:
        raise ValueError("--out names the copy: add --copy NAME, or leave it out")
    chosen.result = recipes = shipped_recipes()
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        laptop = f"  [laptop scale: {recipe.minutes:g} min on two cores]" if recipe.minutes else ""
        print(f"{recipe.name:{width}}  {recipe.title}{laptop}")


def copy_recipe(name: str, out: str | None) -> Path:
    """Writes a recipe that needs no base; never over a file that exists."""
    from a2mim.engine.config import own_settings
    from a2mim.engine.recipes import find_recipe, standalone
    from a2mim.files import write_text

    path = find_recipe(name)
    place = Path(out or f"{path.stem}.py")
    if place.exists():
        raise ValueError(f"{place} exists; choose another file with --out, or delete it")
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, standalone(path, own_settings(path)))
    typed, kind = shlex.quote(str(place)), path.parent.name
    following = {"finetune": f"finetune {typed} SOURCE", "refine": f"refine SOURCE --recipe {typed}"}
    print(f"recipe  {place}\nnext:   a2mim {following.get(kind, f'pretrain {typed}')}")
    return place

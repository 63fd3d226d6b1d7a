"""Recipes by name: the ones that ship with a2mim, found from any folder.

They stand once, in `configs/` of the repository; an installed package holds the same files. Nothing of torch is
imported here, and listing recipes executes none of them.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from a2mim.protocols import protocol_names
from a2mim.text import close_names, warn_user

_PACKAGE = Path(__file__).parents[1]
_WIDTH = 100  # characters of a line of a copied recipe
_TOOL = re.compile(r"python tools/(\w+)\.py(.*?)configs/(?:\w+/)?(\w+\.py)")
_MINUTES = re.compile(r"Laptop scale: about (\d+(?:\.\d+)?) minutes?")


@dataclass(frozen=True)
class Recipe:
    """A recipe that ships with a2mim.

    Args:
        name: as a command takes it, for example "a2mim_xcit" or "finetune/mae_finetune".
        path: of the file.
        title: the first line of its docstring.
        minutes: what its laptop scale took on two cores, as its docstring says; None: not measured.
    """

    name: str
    path: Path
    title: str
    minutes: float | None


def recipes_folder() -> Path:
    """Where the shipped recipes are: inside an installed package, else beside it in a checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if (folder / "_base_").is_dir():
            return folder
    raise FileNotFoundError(f"this installation of a2mim has no recipes beside {_PACKAGE}; install it again")


def shipped_recipes() -> list[Recipe]:
    """All of them, pre-training first, sorted by name."""
    folder = recipes_folder()
    found = [path for path in folder.rglob("*.py") if not path.relative_to(folder).parts[0].startswith("_")]
    return [_describe(folder, path) for path in sorted(found, key=lambda p: (len(p.relative_to(folder).parts), p))]


def _describe(folder: Path, path: Path) -> Recipe:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    minutes = _MINUTES.search(text)
    name = path.relative_to(folder).with_suffix("").as_posix()
    return Recipe(name, path, text.partition("\n")[0], float(minutes[1]) if minutes else None)


def find_recipe(given: str | PathLike) -> Path:
    """The file of a recipe: a path where there is such a file, else a shipped recipe of that name, or of a fine-tuning
    protocol of that name.

    Raises:
        FileNotFoundError: there is neither; names the nearest of both.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    recipes = {recipe.name: recipe.path for recipe in shipped_recipes()}
    name = str(given)
    if name in protocol_names("finetune"):
        name = f"finetune/{name.replace('-', '_')}"
    if name in recipes:
        return recipes[name]
    looks_like_a_path = path.suffix == ".py"
    near = [str(path.parent / name) for name in _near(path.name, [p.name for p in path.parent.glob("*.py")])]
    near += _near(path.stem if looks_like_a_path else str(given), list(recipes))
    hint = f"; did you mean {' or '.join(near[:3])}?" if near else "; `a2mim recipes` lists those that ship with a2mim"
    what = "no config file" if looks_like_a_path else "neither a config file nor a recipe called"
    raise FileNotFoundError(f"there is {what} {given}{hint}")


def tell_of_namesake(given: str | PathLike) -> None:
    """Warns where a file here, such as an edited copy, has the name of the shipped recipe that was asked for."""
    own, found = Path(f"{given}.py"), find_recipe(given)
    if found != Path(given).expanduser() and own.is_file() and not own.samefile(found):
        warn_user(f"{given} is the recipe that ships with a2mim; type {own} for the file of that name here")


def _near(name: str, known: list[str]) -> list[str]:
    by_last = {key.rpartition("/")[2]: key for key in known}
    return [by_last[match] for match in close_names(name.rpartition("/")[2], by_last, 2)]


def standalone(path: Path, settings: dict[str, Any]) -> str:
    """The text of a recipe without a base. The command in its docstring names the copy, not a file of a checkout.

    Args:
        path: of the recipe, for its docstring.
        settings: what it and its base say, nested.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
    return as_recipe(_TOOL.sub(r"a2mim \1\2\3", docstring), settings)


def as_recipe(docstring: str, settings: dict[str, Any]) -> str:
    """The text of a recipe with these first lines and these settings, nested."""
    parts = [f'"""{docstring.strip()}\n"""', *(f"{key} = {_literal(value)}" for key, value in settings.items())]
    return parts[0] + "\n\n" + "\n".join(parts[1:]) + "\n"


def _literal(value: Any, indent: str = "") -> str:
    """A plain value as Python text; groups as dict(…), one entry a line where they are long."""
    short = _on_one_line(value)
    if len(indent) + len(short) <= _WIDTH or not value or not isinstance(value, dict | list | tuple):
        return short
    inner = indent + "    "
    opening, closing = _brackets(value)
    lines = [f"{inner}{key}{_literal(item, inner)}," for key, item in _entries(value)]
    return "\n".join([opening, *lines, indent + closing])


def _on_one_line(value: Any) -> str:
    if not isinstance(value, dict | list | tuple):
        return _quoted(value) if isinstance(value, str) else repr(value)
    opening, closing = _brackets(value)
    text = ", ".join(key + _on_one_line(item) for key, item in _entries(value))
    return f"{opening}{text}{',' if isinstance(value, tuple) and len(value) == 1 else ''}{closing}"


def _brackets(value: dict | list | tuple) -> tuple[str, str]:
    if isinstance(value, dict):
        return ("dict(", ")") if _are_names(value) else ("{", "}")
    return ("[", "]") if isinstance(value, list) else ("(", ")")


def _entries(value: dict | list | tuple) -> Iterator[tuple[str, Any]]:
    """(what stands before an entry, the entry)."""
    if not isinstance(value, dict):
        yield from (("", item) for item in value)
        return
    names = _are_names(value)
    for key, item in value.items():
        yield (f"{key}=" if names else f"{_quoted(key)}: "), item


def _quoted(text: str) -> str:
    """A string with double quotes, as the recipes have them, where that needs no escape."""
    return repr(text) if '"' in text or repr(text)[0] == '"' else f'"{repr(text)[1:-1]}"'


def _are_names(value: dict) -> bool:
    """Whether all keys can stand as dict(key=…)."""
    return all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value)

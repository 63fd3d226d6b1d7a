"""Reads a recipe: a Python file, which is executed, and whose variables are its settings.

Only a recipe that the user named is ever read this way; a run's own settings are data (`a2mim.engine.stored`).
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from a2mim.engine.recipes import find_recipe
from a2mim.text import close_names

ALIKE = 0.8  # difflib's ratio from which a helper's name passes for a mistyped setting


def read(path: str | os.PathLike, settings: Iterable[str]) -> dict:
    """The recipe's own settings, its `_base_` included and its helper variables left out.

    Args:
        path: an mmengine config file in Python, or the name of a recipe that ships with a2mim.
        settings: every name that is a setting of some kind of recipe.

    Raises:
        FileNotFoundError, ValueError: in one sentence.
    """
    from mmengine.config import Config

    path = find_recipe(path)
    try:
        names = names_in(path)
        lazy = None if "read_base" in names.used else False  # mmengine takes `import math` for its lazy style
        given = Config.fromfile(str(path), import_custom_modules=False, lazy_import=lazy).to_dict()
    except SyntaxError as error:
        raise ValueError(f"{path} is not valid Python: {error.msg}, line {error.lineno}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a recipe may raise anything, SystemExit and GeneratorExit included
        problem = described(error, path)
        _close_files_of(error)
        raise ValueError(f"{path} cannot be read as a config: {problem}") from error
    known = set(settings)
    return {key: value for key, value in given.items() if key in known or not names.is_helper(key, known)}


def described(error: BaseException, path: Path) -> str:
    """The kind of an error, its text on one line, and the line of the recipe that raised it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _same(frame.filename, path)]
    where = f", line {lines[-1]}" if lines else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"


def _close_files_of(error: BaseException) -> None:
    """Ends the frames of an error. mmengine leaves the copy of a recipe open in them, and Python warns of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        traceback.clear_frames(error.__traceback__)


def _same(name: str, path: Path) -> bool:
    return os.path.abspath(name) == os.path.abspath(path)


@dataclass
class Names:
    """The top-level names of a recipe and its bases.

    Args:
        assigned: name that a plain assignment binds -> every name assigned in the same file.
        bound: names that something else binds: a loop, an import, a `with`, a function, a class.
        used: names that are read somewhere, `_base_.name` and {{_base_.name}} included.
    """

    assigned: dict[str, set[str]] = field(default_factory=dict)
    bound: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)

    def is_helper(self, name: str, settings: set[str]) -> bool:
        """Whether a variable that is no setting only serves others.

        It does if the recipe reads it and its name is not close to a setting that its file leaves unset: that would
        be a mistyped setting. Names that begin with "_" and loop variables are never settings.
        """
        if name.startswith("_") or (name in self.bound and name not in self.assigned):
            return True
        return name in self.used and not close_names(name, settings - self.assigned.get(name, set()), 1, cutoff=ALIKE)


def names_in(path: Path) -> Names:
    """The names of a recipe and, in the same sets, those of its bases."""
    names, waiting, seen = Names(), [path], set()
    while waiting:
        file = waiting.pop()
        if file in seen or file.suffix != ".py" or not file.is_file():
            continue
        seen.add(file)
        text = file.read_text(encoding="utf-8")
        names.used |= set(re.findall(r"\{\{\s*_base_\.(\w+)", text))
        tree = ast.parse(re.sub(r"\{\{.*?\}\}", "0", text))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                names.used.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "_base_":
                names.used.add(node.attr)
        together: set[str] = set()
        for statement in tree.body:
            waiting += _note(statement, names, together, file)
    return names


def _note(statement: ast.stmt, names: Names, together: set[str], file: Path) -> list[Path]:
    """Notes what a top-level statement binds, `together` with others of its file; returns the bases that it names."""
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    assigned = {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    together |= assigned
    names.assigned |= dict.fromkeys(assigned, together)
    if not targets:
        stored = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        names.bound |= stored | {
            alias.asname or alias.name
            for n in ast.walk(statement)
            if isinstance(n, ast.ImportFrom)
            for alias in n.names
        }
        names.bound |= {n.name for n in [statement] if isinstance(n, ast.ClassDef)}
    if assigned != {"_base_"} or not isinstance(statement, ast.Assign):
        return []
    try:
        bases = ast.literal_eval(statement.value)
    except ValueError:  # computed; mmengine follows it, its helpers count as settings
        return []
    return [file.parent / base for base in ([bases] if isinstance(bases, str) else bases)]


def import_modules(custom_imports: dict | None, path: str | os.PathLike) -> None:
    """Imports the modules that register a user's own parts.

    They are found where Python finds modules, in the current folder and beside the recipe.

    Raises:
        ValueError: names the module that cannot be imported.
    """
    if not custom_imports:
        return
    for folder in (os.getcwd(), os.path.dirname(os.path.abspath(path))):
        if folder not in sys.path:
            sys.path.append(folder)
    modules = custom_imports.get("imports") or []
    for module in [modules] if isinstance(modules, str) else modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == module:
                reason = f"it is neither installed, nor in {os.getcwd()}, nor beside the recipe"
            else:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            problem = f"{path}: custom_imports cannot import {module!r}: {reason}"
            if not custom_imports.get("allow_failed_imports"):
                raise ValueError(problem) from error
            warnings.warn(problem, stacklevel=2)

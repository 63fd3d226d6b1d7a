"""A run's own settings as data: settings.json, written beside config.py. Reading them executes nothing.

config.py shows the same settings to people, as a recipe that can be run again. A run folder of an older version has
only that file; it is read as plain assignments, and refused where it holds anything else.
"""

from __future__ import annotations

import ast
import json
import pprint
from pathlib import Path
from typing import Any

from a2mim.engine.setting_groups import Settings
from a2mim.files import write_json, write_text

FILE, RECIPE = "settings.json", "config.py"


def write_settings(folder: Path, settings: Settings) -> None:
    """Writes settings.json and config.py."""
    plain = settings.model_dump()
    write_json(folder / FILE, plain)
    lines = [f"{key} = {pprint.pformat(value, sort_dicts=False)}\n" for key, value in plain.items()]
    write_text(folder / RECIPE, "".join(lines))


def holds_run(folder: Path) -> bool:
    """Whether a run was started in the folder."""
    return (folder / FILE).is_file() or (folder / RECIPE).is_file()


def read_settings(folder: Path) -> dict:
    """The settings of the run in a folder, as nested dicts.

    Raises:
        ValueError: the file is damaged, or is Python that does more than assign plain values.
    """
    path = folder / FILE
    if not path.is_file():
        return _assignments(folder / RECIPE)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it to read the settings from {RECIPE} beside it"
        ) from error


def _assignments(path: Path) -> dict:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found: dict[str, Any] = {}
        for statement in tree.body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                continue  # a docstring
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    found[name] = ast.literal_eval(value)
                case _:
                    raise ValueError(f"line {statement.lineno} is more than a plain assignment")
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{path} is read as plain values and never executed, and cannot be read so: {error};"
            " to run it as a recipe, name it on the command line of pretrain or finetune"
        ) from error
    return found

"""What a run keeps as data: settings.json, written beside config.py, and log.jsonl. Reading them executes nothing.

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
from a2mim.files import read_json, read_text, write_json, write_text

FILE, RECIPE = "settings.json", "config.py"


def write_settings(folder: Path, settings: Settings, changes: list[dict]) -> None:
    """Writes settings.json, and config.py with what each resume changed in its first lines."""
    plain = settings.model_dump()
    write_json(folder / FILE, plain)
    lines = [f"# changed at step {each['step']}: {'; '.join(each['changed'])}\n" for each in changes]
    lines += [f"{key} = {pprint.pformat(value, sort_dicts=False)}\n" for key, value in plain.items()]
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
        return dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it to read the settings from {RECIPE} beside it"
        ) from error


def _assignments(path: Path) -> dict:
    try:
        tree = ast.parse(read_text(path))
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
            " to run it as a recipe, name it on the command line of pretrain, finetune or refine"
        ) from error
    return found


def read_log(path: Path) -> tuple[list[dict], int]:
    """(the lines of a log.jsonl that are whole, how many are damaged).

    A last line without its end is what a killed process leaves; it counts as no damage.
    """
    if not path.is_file():
        return [], 0
    whole, _, half = path.read_bytes().rpartition(b"\n")
    lines = [_line(text) for text in whole.splitlines()] + [line for line in [_line(half)] if line]
    return [line for line in lines if line is not None], lines.count(None)


def _line(text: bytes) -> dict | None:
    """A line of the log, or None if it is damaged."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None

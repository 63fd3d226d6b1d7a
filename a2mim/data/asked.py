"""What a run was asked for, as its folder keeps it: public in summary.json, whole in a file of the owner's alone.

A URL may hold a password or a signature. summary.json and all that is made from it show the public part;
`--resume` and the calibration of an export need the whole, which lies in `.asked.json` with the mode 0600, and only
where the two differ.
"""

import json
from pathlib import Path
from typing import Any

from a2mim.data.remote.addresses import public_name
from a2mim.files import write_private

PRIVATE = ".asked.json"


def public_asked(asked: dict[str, Any]) -> dict[str, Any]:
    """The same without passwords and queries of URLs; what is neither plain nor a path leaves the name of its type."""
    return {key: _public(value) for key, value in _recordable(asked).items()}


def keep_private(folder: Path, asked: dict[str, Any]) -> None:
    """Writes the whole of what was asked for, where summary.json cannot hold it."""
    whole = _recordable(asked)
    if whole != public_asked(asked):
        write_private(folder / PRIVATE, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    else:
        (folder / PRIVATE).unlink(missing_ok=True)


def recall(folder: Path) -> dict[str, Any]:
    """What was asked for when the run was started: config, data, test_data, laptop, …; {} where nothing says so."""
    asked = _read(folder / "summary.json").get("asked")
    asked = asked if isinstance(asked, dict) else {}
    whole = _read(folder / PRIVATE)
    return asked | {key: value for key, value in whole.items() if _public(value) == asked.get(key)}


def _recordable(asked: dict[str, Any]) -> dict[str, Any]:
    plain = (str, list, bool, int, float, type(None))
    return {k: v if isinstance(v, plain) else f"<{type(v).__name__} given from Python>" for k, v in asked.items()}


def _public(value: Any) -> Any:
    if isinstance(value, list):
        return [_public(part) for part in value]
    return public_name(value) if isinstance(value, str) else value


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

"""The request that started a run, as the run's folder stores it.

A URL may hold a password or a signature. summary.json and everything made from it show only the public part.
`--resume` and the calibration of an export need the whole URL. It is stored in `.asked.json`, which only the owner can
read (mode 0600), and only where it differs from the public part.
"""

import json
from pathlib import Path
from typing import Any

from a2mim.data.remote.addresses import public_name
from a2mim.files import read_json, write_private

PRIVATE = ".asked.json"


def public_request(request: dict[str, Any]) -> dict[str, Any]:
    """The request without passwords and queries of URLs. An object from Python is replaced by the name of its type."""
    return {key: _public(value) for key, value in recordable(request).items()}


def keep_private(folder: Path, request: dict[str, Any]) -> None:
    """Writes the whole request to a private file when summary.json does not hold all of it."""
    whole = recordable(request)
    if whole != public_request(request):
        write_private(folder / PRIVATE, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    else:
        (folder / PRIVATE).unlink(missing_ok=True)


def recall(folder: Path) -> dict[str, Any]:
    """The request that started the run: config, data, test_data, laptop, …; {} if the folder does not record it."""
    request = _read(folder / "summary.json").get("asked")
    request = request if isinstance(request, dict) else {}
    whole = _read(folder / PRIVATE)
    return request | {key: value for key, value in whole.items() if _public(value) == request.get(key)}


def recordable(request: dict[str, Any]) -> dict[str, Any]:
    """The request as JSON can hold it. An object from Python is replaced by the name of its type."""
    plain = (str, list, bool, int, float, type(None))
    return {k: v if isinstance(v, plain) else f"<{type(v).__name__} given from Python>" for k, v in request.items()}


def _public(value: Any) -> Any:
    if isinstance(value, list):
        return [_public(part) for part in value]
    return public_name(value) if isinstance(value, str) else value


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

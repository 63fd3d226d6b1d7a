"""Where each setting in force comes from: the defaults, a protocol, the recipe, its laptop block, the command line, a
resume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def dotted_keys(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """ "a.b" for nested settings, in their order; an empty dict counts as a value."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from dotted_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def origins_of(settings: dict[str, Any], layers: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
    """Dotted key -> where its value comes from.

    Args:
        settings: those in force, nested.
        layers: (name, dotted keys that it sets), the lowest first. A key also covers what lies under it, and one that
            goes on into a list ("losses.0.weight") covers the list.
    """
    origins = dict.fromkeys(dotted_keys(settings), "default")
    for name, keys in layers:
        for key in keys:
            for known in origins:
                if known == key or known.startswith(f"{key}.") or key.startswith(f"{known}."):
                    origins[known] = name
    return origins

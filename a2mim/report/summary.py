"""What a report takes from summary.json: known entries of the right type. The file may be damaged, or a stranger's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

LARGEST = 1e300  # of a number; beyond it sums and products overflow
_MOST_STEPS = 2**53  # steps of a run


def is_number(value: object) -> TypeGuard[int | float]:
    """True for numbers that can be computed with, NaN included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value != value or abs(value) < LARGEST


def is_step(value: object) -> TypeGuard[int]:
    """True for a number of steps."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_STEPS


def is_pair(value: object) -> bool:
    """True for an interval."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _all(check: Callable[[object], bool]) -> Callable[[object], bool]:
    """For a dictionary whose values all pass."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


_COUNTS = ("images", "duplicates", "incomplete", "damaged_but_decoded", "reduced_to_8_bits", "left_out_each_epoch")
_SHAPE: dict[str, Any] = {
    "data": {
        **dict.fromkeys(_COUNTS, is_number),
        **dict.fromkeys(("unreadable", "class_counts"), _all(is_number)),
        **dict.fromkeys(("first_unreadable", "skipped_shards"), _is_list),
        "sizes": {"looked_at": is_number, **dict.fromkeys(("least", "median", "greatest"), is_pair)},
    },
    "loss": {"baseline": is_number},
    "result": {"top1_last": is_number, "interval": is_pair, "n_test": is_number},
    "origins": _all(_is_text),
    "seconds": is_number,
    "steps": is_step,
    "of_steps": is_step,
    **{key: {} for key in ("asked", "machine", "versions", "encoder", "classifier", "judged")},
}


def cleaned(summary: dict[str, Any], shape: dict[str, Any] | None = None) -> dict[str, Any]:
    """The summary without entries of another type than the report reads."""
    shape, kept = _SHAPE if shape is None else shape, {}
    for key, value in summary.items():
        asked = shape.get(key)
        if isinstance(asked, dict):
            if isinstance(value, dict):
                kept[key] = cleaned(value, asked) if asked else value
        elif asked is None or asked(value):
            kept[key] = value
    return kept

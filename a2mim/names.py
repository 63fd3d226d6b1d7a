"""The nearest right names for a mistyped one. Imports neither torch nor mmengine, so that mistakes are told at once."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: object, allowed: Iterable[str], most: int = 3) -> str:
    """The tail of an error sentence: the closest allowed names, or all of them where none is close.

    Args:
        name: what was given.
        allowed: every right name.
        most: how many close names to show.
    """
    known = list(allowed)
    close = get_close_matches(str(name), known, n=most)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known are {', '.join(known)}"

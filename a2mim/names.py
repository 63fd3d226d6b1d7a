"""The nearest right names for a mistyped one. It imports neither torch nor mmengine, to report mistakes at once."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: object, allowed: Iterable[str], most: int = 3) -> str:
    """The end of an error sentence: the closest allowed names, or all of them if none is close.

    Args:
        name: what the user gave.
        allowed: every right name.
        most: greatest number of close names.
    """
    known = list(allowed)
    close = get_close_matches(str(name), known, n=most)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known are {', '.join(known)}"

"""The nearest right names for a mistyped one. It imports neither torch nor mmengine, to report mistakes at once."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def close_names(name: object, allowed: Iterable[str], most: int = 3, cutoff: float = 0.6) -> list[str]:
    """The allowed names that are most like a given one, best first; none where none is alike.

    Args:
        most: how many names, at most.
        cutoff: difflib's ratio from which two names are alike, 0..1.
    """
    return get_close_matches(str(name), list(allowed), n=most, cutoff=cutoff)


def nearest(name: object, allowed: Iterable[str], most: int = 3, cutoff: float = 0.6, listed: bool = True) -> str:
    """The tail of an error sentence: the closest allowed names, or all of them where none is close.

    Args:
        name: what the user gave.
        allowed: every right name.
        most: how many close names to show.
        cutoff: as in `close_names`.
        listed: name all where none is close; False for long lists: the tail is empty then.
    """
    known = list(allowed)
    if close := close_names(name, known, most, cutoff):
        return f"; did you mean {' or '.join(close)}?"
    return f"; known are {', '.join(known)}" if listed else ""

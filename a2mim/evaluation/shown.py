"""Results that show themselves in a notebook. They stay what they were: a dict, a list, a text.

Only `_repr_html_` is added, which IPython asks for when a result ends a cell. Everything from a run is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

_LONGEST = 200  # characters of a value in a table
_MOST_ROWS = 50


class Record(dict):
    """A dict that a notebook shows as a table of its plain values.

    Args:
        values: as for dict.
        show: returns HTML in place of the table; "" where it has nothing to show.
    """

    def __init__(self, values: Mapping[str, Any] | Iterable = (), show: Callable[[], str] | None = None):
        super().__init__(values)
        self._show = show

    def __reduce__(self):
        return type(self), (dict(self),)  # what draws it is not kept

    def _repr_html_(self) -> str:
        return (self._show() if self._show else "") or table([self])


class Records(list):
    """A list of dicts that a notebook shows as one table, a row each.

    Args:
        values: the dicts.
        columns: the keys to show, where a row has them; none: all plain values. A dict keeps every key.
    """

    def __init__(self, values: Iterable[dict] = (), columns: Sequence[str] = ()):
        super().__init__(values)
        self._columns = tuple(columns)

    def __reduce__(self):
        return type(self), (list(self), self._columns)

    def _repr_html_(self) -> str:
        chosen = [{key: row[key] for key in self._columns if key in row} or row for row in self]
        return table(chosen)


class Sentence(str):
    """A text that a notebook shows as a paragraph.

    Args:
        text: the sentence.
        facts: its numbers by name, for scripts; also as the attribute of that name.
    """

    facts: dict[str, Any]

    def __new__(cls, text: str, facts: Mapping[str, Any] | None = None):
        made = super().__new__(cls, text)
        made.facts = dict(facts or {})
        return made

    def __getnewargs__(self):
        return str(self), self.facts

    def _repr_html_(self) -> str:
        return f"<p>{escape(self)}</p>"


def table(rows: list[dict]) -> str:
    """One row as names and values, several as columns; tensors, arrays and nested values are left out."""
    plain = [{key: _cell(value) for key, value in row.items() if _is_plain(value)} for row in rows[:_MOST_ROWS]]
    if len(plain) == 1:
        lines = [f"<tr><th>{escape(str(key))}</th><td>{value}</td></tr>" for key, value in plain[0].items()]
        return f"<table>{''.join(lines)}</table>"
    keys = list(dict.fromkeys(key for row in plain for key in row))
    lines = ["".join(f"<th>{escape(str(key))}</th>" for key in keys)]
    lines += ["".join(f"<td>{row.get(key, '')}</td>" for key in keys) for row in plain]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _is_plain(value: Any) -> bool:
    few = isinstance(value, list | tuple) and len(value) <= 4 and all(_is_plain(part) for part in value)
    return few or value is None or isinstance(value, str | int | float | bool)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _cell(value: Any) -> str:
    text = _text(value)
    return escape(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")

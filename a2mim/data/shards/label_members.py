"""The label members of one sample: .cls, "label" in .json, .txt.

Some labels are no class: a list, a fraction, a long text, a number of more than 64 bits, JSON that cannot be read. They
are counted and not used: pre-training needs no labels, and evaluations refuse such a set.
"""

import json

from a2mim.data.names import is_class_name, whole_number

SUFFIXES = ("cls", "json", "txt")
LONGEST = {"cls": 4 << 10, "json": 16 << 20, "txt": 1 << 20}  # bytes that are read; longer members are no labels
NONE = -1


class NoClass(ValueError):
    """The sample has a label, but it is no class."""


def label_of(contents: dict[str, bytes | None]) -> tuple[int, str | None]:
    """(number or -1, class name or None). .cls has priority over "label" in .json. Raises NoClass.

    Args:
        contents: by suffix; None if the member is too long to be read.
    """
    for suffix in ("cls", "json"):
        if suffix in contents:
            value = _value(suffix, contents[suffix])
            if value is not None:
                return _class(value)
    return NONE, None


def text_of(contents: dict[str, bytes | None]) -> str | None:
    """The content of .txt; None if there is none, "" if it is too long for a label."""
    if "txt" not in contents:
        return None
    return (contents["txt"] or b"").decode("utf-8", "replace").strip()


def _value(suffix: str, content: bytes | None) -> object:
    """The stored label; None if a .json has none."""
    if content is None:
        raise NoClass("too long")
    try:
        if suffix == "cls":
            return content.decode("utf-8-sig").strip()
        content_of_json = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError, MemoryError):  # not UTF-8, not JSON, too many digits, nested too deep
        raise NoClass("cannot be read") from None
    return content_of_json.get("label") if isinstance(content_of_json, dict) else None


def _class(value: object) -> tuple[int, str | None]:
    number = whole_number(value)
    if number is not None:
        if number < NONE:
            raise NoClass("a negative number")
        return number, None
    if isinstance(value, str) and is_class_name(value):
        return NONE, value
    raise NoClass("neither a whole number nor a class name")

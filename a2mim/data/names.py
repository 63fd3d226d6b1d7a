"""Names and labels that come with data: file names that are not UTF-8, class names, labels of any type."""

import re
import unicodedata

LONGEST_NAME = 200  # bytes of a class name
_NUMBER = re.compile(r"[+-]?[0-9]+")
_INT64 = 1 << 63


def escaped(text: str) -> str:
    r"""A name on one line that any UTF-8 file takes: a line break becomes \n, a byte that is not UTF-8 \xe9.

    A name without such characters is not changed, not even its backslashes.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":  # spaces of any width
        return character
    if "\udc80" <= character <= "\udcff":  # Python's surrogate for a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def cut(text: str, most: int = 200) -> str:
    """A text for a message, at most so many characters of it; a line of a file may be of any length."""
    return text if len(text) <= most else f"{text[:most]}…"


def class_name(text: str) -> str:
    """The printable name of a class, in composed form (NFC): macOS decomposes characters that Linux composes."""
    return unicodedata.normalize("NFC", escaped(text))


def is_class_name(text: str) -> bool:
    """True if a text may be the name of a class: one printable line of 1 to 200 bytes, and no number."""
    return (
        text != ""
        and escaped(text) == text  # one line, and no lone surrogate
        and len(text.encode()) <= LONGEST_NAME
        and not _NUMBER.fullmatch(text)
    )


def whole_number(value: object) -> int | None:
    """A 64-bit integer from an int, a whole float, text or bytes of digits, or an array or tensor of one.

    None for everything else: fractions, truth values, lists, longer numbers.
    """
    if hasattr(value, "item") and not isinstance(value, int | float):
        try:
            value = value.item()
        except (ValueError, RuntimeError):  # an array of several
            return None
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if isinstance(value, str):
        value = value.strip()
        if len(value) > 20 or not _NUMBER.fullmatch(value):
            return None
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if -_INT64 <= value < _INT64 else None

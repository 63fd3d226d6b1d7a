"""Text from files and users, made fit for a terminal, a page of Markdown and YAML.

Invariant: what these functions return is one line of printable characters. A name can then neither move the cursor, nor
begin a line of its own, nor turn the direction of reading, nor end the quotes that it stands in.
"""

import json
import re
from pathlib import PurePath

LONGEST = 300  # characters of a name on a page
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9.+-]*")
_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def one_line(text: object) -> str:
    r"""Printable, on one line: control characters, line breaks and bidi marks become \n, \x1b, \u202e."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: object) -> str:
    """`one_line`, cut in the middle where it is longer than LONGEST."""
    line = one_line(text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"


def code_span(text: object) -> str:
    """As code within a paragraph of Markdown, where nothing in it is read as Markdown or HTML."""
    line = shortened(text) or " "
    longest = max(map(len, re.findall("`+", line)), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def yaml_value(text: object) -> str:
    """As a YAML scalar: a plain word stays as it is, all else is quoted."""
    line = shortened(text)
    plain = _PLAIN.fullmatch(line) and line.lower() not in _YAML_WORDS
    return line if plain else json.dumps(line)


def public_name(place: object) -> str:
    """A path or URL as it may be published: a path's last part; a URL without user, password, query and fragment."""
    text = str(place)
    scheme, found, rest = text.partition("://")
    if found and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.:-]*", scheme):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    if re.match(r"pipe:", text):
        return "pipe:…"
    return PurePath(text).name or text

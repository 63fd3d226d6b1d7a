"""Text from files and users, made fit for a terminal, a page of Markdown and YAML; the right names for a mistyped one;
progress on a screen, in a notebook and in a file.

Invariant: what `one_line` and the functions that use it return is one line of printable characters. A name can then
neither move the cursor, nor begin a line of its own, nor turn the direction of reading, nor end the quotes around it.
Nothing heavy is imported here, so a mistake in a recipe is reported at once.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import IO, Any

from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # that a notebook was recognised, or that it lacks ipywidgets
    from tqdm.autonotebook import tqdm

LONGEST = 300  # characters of a name on a page
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9.+-]*")
_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def first_line(error: BaseException) -> str:
    """What an error says, on one line of at most 200 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def one_line(text: object) -> str:
    r"""Printable, on one line: control characters, line breaks and bidi marks become \n, \x1b, \u202e."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class PrintableStream(io.TextIOBase):
    """A text stream that escapes what a terminal would act upon; line breaks and tabs pass.

    Args:
        stream: where the text goes.
    """

    def __init__(self, stream: IO[str]):
        self.stream = stream

    def write(self, text: str) -> int:
        if not text.isprintable():
            text = "".join(c if c in "\n\t" else one_line(c) for c in text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()


def warn_user(message: str) -> None:
    """A UserWarning that names the line which called a2mim, and no line of a2mim's own."""
    depth, frame = 2, sys._getframe(1).f_back
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(("a2mim.", "torch.", "contextlib")):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, stacklevel=depth + 1)


def size_in_words(size: int | Sequence[int]) -> str:
    """ "224" for a square of 224 pixels, "192 x 384" for height and width."""
    sides = (size,) if isinstance(size, int) else tuple(dict.fromkeys(size))
    return " x ".join(map(str, sides))


EVERY = 15.0  # seconds between two lines about progress, where there is no bar


def has_terminal() -> bool:
    """Whether a bar can be redrawn: in a notebook, and on a terminal that is not the output of a SLURM job."""
    notebook = tqdm.__module__.endswith("notebook")
    return notebook or (sys.stderr.isatty() and "SLURM_JOB_ID" not in os.environ)


class ProgressBar(tqdm):
    """tqdm's bar. Where a bar cannot be redrawn, it prints whole lines without carriage returns: one every 15 s, and
    one at the end if there was one before.
    """

    disable: bool

    def __init__(self, *given: Any, **named: Any):
        self.lines = not has_terminal()
        self.told = time.monotonic()
        if self.lines:
            named |= {"mininterval": EVERY, "miniters": 1, "delay": EVERY}
        super().__init__(*given, **named)
        if self.lines and not self.disable:
            known = "/{total_fmt} ({percentage:.0f}%), {elapsed} spent, {remaining} left{postfix}"
            name = "{desc}: {n_fmt}" if self.desc else "{n_fmt}"
            self.bar_format = name + (known if self.total else " {unit}, {elapsed} spent{postfix}")

    def display(self, msg: str | None = None, pos: int | None = None, **more: Any) -> Any:
        if not self.lines:
            return super().display(msg, pos, **more)
        if msg is None and time.monotonic() - self.told >= EVERY:
            self._tell()
        return True

    def clear(self, *given: Any, **named: Any) -> None:
        if not self.lines:
            super().clear(*given, **named)

    def close(self) -> None:
        if not self.lines:
            super().close()
        elif not self.disable:
            if self.last_print_t >= self.start_t + self.delay and self.n > self.last_print_n:
                self._tell()
            self.disable = True
            self._decr_instances(self)

    def _tell(self) -> None:
        self.told = time.monotonic()
        self.fp.write(f"{one_line(self)}\n")
        self.fp.flush()


def shortened(text: object) -> str:
    """`one_line`, cut in the middle where it is longer than LONGEST."""
    line = one_line(text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"


def quoted(value: object) -> str:
    """A value as Python writes it, on one line of bearable length; for messages, as it may come from a file."""
    return shortened(repr(value))


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

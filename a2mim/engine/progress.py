"""How far a run is: a bar in a terminal and in a notebook, whole lines in a file and under SLURM."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO

from tqdm import tqdm
from tqdm.auto import tqdm as notebook_tqdm

from a2mim.text import EVERY, has_terminal


class Progress(Protocol):
    """What the log asks of a bar."""

    def update(self, steps: int = 1) -> Any: ...

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> Any: ...

    def close(self) -> Any: ...


class Lines:
    """A whole line every 15 s, and one at the end; no carriage returns.

    Args:
        total, initial: steps of the run, and those that are done.
        out: where the lines go.
    """

    def __init__(self, total: int, initial: int, out: TextIO | None = None):
        self.total, self.initial, self.done = total, initial, initial
        self.out, self.text = out or sys.stderr, ""
        self.began = self.told = time.monotonic()

    def update(self, steps: int = 1) -> None:
        self.done += steps
        if time.monotonic() - self.told >= EVERY:
            self._tell()

    def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
        """What stands behind the numbers."""
        self.text = text

    def close(self) -> None:
        if self.done > self.initial:
            self._tell()

    def _tell(self) -> None:
        self.told = time.monotonic()
        spent = self.told - self.began
        left = spent / max(1, self.done - self.initial) * (self.total - self.done)
        share = self.done / max(1, self.total)
        line = f"step {self.done}/{self.total} ({share:.0%}), {_clock(spent)} spent, {_clock(left)} left"
        print(f"{line}, {self.text}" if self.text else line, file=self.out, flush=True)


def _clock(seconds: float) -> str:
    return tqdm.format_interval(seconds)


def start_progress(total: int, initial: int, shown: bool) -> Progress:
    """The progress of a run.

    Args:
        total, initial: steps of the run, and those that are done.
        shown: whether this process shows any.
    """
    bar: dict[str, Any] = {"total": total, "initial": initial, "unit": "step"}
    if not shown:
        return tqdm(**bar, disable=True)
    if in_notebook():
        return notebook_tqdm(**bar)
    if not has_terminal():
        return Lines(total, initial)
    form = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
    return tqdm(**bar, dynamic_ncols=True, mininterval=0.5, bar_format=form)


def in_notebook() -> bool:
    """Whether the process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    return found is not None and "IPKernelApp" in getattr(found, "config", {})

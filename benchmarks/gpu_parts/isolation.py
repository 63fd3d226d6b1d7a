"""Runs each part in a process of its own, with a limit on its time. What one part does cannot stop the others.

A part appends each finding to a file as soon as it has it. So a part that fails, crashes or is too slow keeps what it
found until then. Imports no torch: a process that is forked from here has not touched the GPU.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METHOD = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
PROCESSES = multiprocessing.get_context(METHOD)


@dataclass
class Findings:
    """Where a part writes what it finds, and how much time it has left.

    Args:
        path: a file of one JSON object a line.
        deadline: `time.time()` at which the part is stopped.
    """

    path: Path
    deadline: float

    def add(self, what: str, **values: Any) -> None:
        """Writes a finding to the file and to the screen. `good=False` marks a check that failed."""
        line = json.dumps({"what": what, **values}, default=str, ensure_ascii=False)
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(f"  {line}", flush=True)

    def left(self) -> float:
        """Seconds until the part is stopped."""
        return self.deadline - time.time()

    def read(self) -> list[dict]:
        """The findings so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


@dataclass
class Outcome:
    """How a part ended. status: "done", "failed", "out of time" or "left out"."""

    status: str
    seconds: float = 0.0
    error: str | None = None
    found: list[dict] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the part ran to its end and none of its checks failed."""
        return self.status == "done" and all(finding.get("good", True) for finding in self.found)


def run_part(function: Callable, arguments: tuple, path: Path, limit: float) -> Outcome:
    """Calls `function(*arguments, findings)` in a new process, for at most `limit` seconds.

    Args:
        path: the file of its findings. The error goes to the same path with the ending `.error`.
    """
    findings, error = Findings(path, time.time() + limit), path.with_suffix(".error")
    process = PROCESSES.Process(target=_call, args=(function, arguments, findings, error))
    started = time.time()
    process.start()
    try:
        process.join(limit)
        late = process.is_alive()
    finally:  # Ctrl-C too
        if process.is_alive():
            stop(process)
    seconds, said = round(time.time() - started, 1), error.read_text() if error.exists() else None
    if late:
        return Outcome("out of time", seconds, f"stopped after {limit:.0f} s", findings.read())
    if process.exitcode:
        return Outcome("failed", seconds, said or f"its process ended with {process.exitcode}", findings.read())
    return Outcome("done", seconds, None, findings.read())


def stop(process: Any) -> None:
    """Kills a process that was started by `run_part`, and all that it started itself."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _call(function: Callable, arguments: tuple, findings: Findings, error: Path) -> None:
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    try:
        function(*arguments, findings)
    except BaseException as problem:
        traceback.print_exc()
        lines = str(problem).strip().splitlines()
        error.write_text(f"{type(problem).__name__}: {lines[0][:300] if lines else ''}")
        raise SystemExit(1) from None

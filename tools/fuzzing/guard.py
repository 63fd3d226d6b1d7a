"""Reads damaged files in a process of its own, which may neither run long, nor take much memory, nor reach outside.

An attempt fails where the process dies, runs over its time or its memory, ends in another error than one short sentence
of ours, starts a program, opens a connection, writes outside of its folder, or gives other values than the whole file,
where a checksum is promised.
"""

import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing.damage import MARK, Damage, flipped

SECONDS = 10  # of processor time that one attempt may take
LONGEST = 120  # seconds of an attempt in all, on a machine that has other things to do
MEMORY = 3 << 30  # bytes of addresses beyond those of the process at its start
LETTERS = 2000  # of an error
ALLOWED = (ValueError, OSError)  # what the command line shows as one sentence
FORBIDDEN = (
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "webbrowser.open"),
    *("os.symlink", "os.chown", "ctypes.dlopen/late", "pty.spawn", "ftplib.connect", "smtplib.connect"),
)


@dataclass
class Subject:
    """Files of one kind, and how they are read.

    Args:
        paths: one of them is damaged in each attempt, and restored afterwards.
        read: reads them all; raises AssertionError for values that it must not give.
        damage: by file; a file that is not named is damaged by `flipped`.
        names_file: every error names the file or its folder; False where only the caller knows its name.
    """

    paths: list[Path]
    read: Callable[[], object]
    damage: dict[Path, Damage] = field(default_factory=dict)
    names_file: bool = True  # every error names the file, or the folder that it lies in


Kind = Callable[[Path], Subject]


@dataclass
class Outcome:
    """What became of the attempts on one kind: how many ended in each way, and a sentence about each that failed."""

    counts: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: "Outcome") -> None:
        self.counts += other.counts
        self.failures += other.failures
        self.seconds += other.seconds


def fuzz(name: str, kind: Kind, seconds: float, seed: int = 0, rounds: int | None = None, first: int = 1) -> Outcome:
    """Makes attempts until the time is over, or so many were made; goes on after one that ends the process.

    Args:
        name: of the kind, for messages and for the random numbers.
        rounds: at most so many attempts.
        first: number of the first; attempt n is the same whatever came before it.
    """
    began, outcome = time.monotonic(), Outcome()
    end, last = began + seconds, None if rounds is None else first + rounds
    while time.monotonic() < end and (last is None or first < last) and len(outcome.failures) < 20:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            answers, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(answers)
                _work(name, kind, Path(folder).resolve(), os.fdopen(writing, "w"), (first, last), end, seed)
            os.close(writing)
            begun = _collect(outcome, os.fdopen(answers))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status:
                outcome.failures.append(f"{name}, seed {seed}, attempt {begun}: the process ended with {_said(status)}")
        if begun is None:  # it could not begin
            break
        first = begun + 1
    outcome.seconds = time.monotonic() - began
    return outcome


def _collect(outcome: Outcome, answers) -> int | None:
    """Counts what the process tells; returns the number of the last attempt that it began."""
    begun = None
    with answers:
        for line in answers:
            told = json.loads(line)
            begun = told.get("begun", begun)
            if "ended" in told:
                outcome.counts[told["ended"]] += 1
            if "failed" in told:
                outcome.failures.append(told["failed"])
    return begun


def _said(status: int) -> str:
    if status > 0:
        return f"status {status}"
    late = {signal.SIGPROF: f"more than {SECONDS} s of processor time", signal.SIGALRM: f"more than {LONGEST} s"}
    return late.get(-status, signal.Signals(-status).name)


def _work(name: str, kind: Kind, folder: Path, tell, attempts: tuple[int, int | None], end: float, seed: int) -> None:
    """The whole life of the child."""
    status = 1
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            home = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder)}
            os.environ.update(home)
            tempfile.tempdir = str(folder)
            os.chdir(folder)
            _attempt_all(name, kind, folder, tell, attempts, end, seed)
        status = 0
    except BaseException as error:
        _tell(tell, failed=f"{name}, seed {seed}: the whole files: {type(error).__name__}: {error}"[:LETTERS])
    finally:
        with contextlib.suppress(BaseException):
            tell.close()
        os._exit(status)


def _attempt_all(name, kind, folder, tell, attempts, end, seed) -> None:
    subject = kind(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject.read()  # the whole files are right
        whole = {path: path.read_bytes() for path in subject.paths}
        found = _watched(folder)
        _limit()
        number, last = attempts
        while time.monotonic() < end and (last is None or number < last):
            _tell(tell, begun=number)
            draw = random.Random(f"{seed} {name} {number}")
            path = draw.choice(subject.paths)
            content = subject.damage.get(path, flipped)(whole[path], draw)
            where = f"{name}, seed {seed}, attempt {number}, {path.name}"
            _tell(tell, **_attempt(subject, path, content, where, found))
            for other in subject.paths:
                if other == path or not other.is_file() or other.stat().st_size != len(whole[other]):
                    other.write_bytes(whole[other])
            number += 1


def _attempt(subject: Subject, path: Path, content: bytes, where: str, found: list[str]) -> dict[str, str]:
    path.write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        subject.read()
        ended = "read"
    except ALLOWED as error:
        ended = type(error).__name__
        if len(str(error)) > LETTERS:
            return {"failed": f"{where}: an error of {len(str(error))} letters: {str(error)[:300]}"}
        if subject.names_file and not any(name in str(error) for name in (path.name, os.getcwd())):
            return {"failed": f"{where}: an error that names no file: {type(error).__name__}: {error}"[:LETTERS]}
    except BaseException as error:
        return {"failed": f"{where}: {type(error).__name__}: {error}"[:LETTERS]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    if Path(MARK).exists():
        found.append("a payload was run")
        Path(MARK).unlink()
    if found:
        said = f"{where}: {', '.join(found)}"
        found.clear()
        return {"failed": said[:LETTERS]}
    return {"ended": ended}


def _tell(tell, **told) -> None:
    tell.write(json.dumps(told) + "\n")
    tell.flush()


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _watched(folder: Path) -> list[str]:
    """A list of what the process has done that no reader does; it is watched until it ends."""
    found: list[str] = []
    inside = (str(folder), "/dev/", "/proc/self/")

    def watch(event: str, arguments: tuple) -> None:
        if event in FORBIDDEN:
            found.append(f"{event}{arguments!r}"[:300])
        elif event == "open" and isinstance(arguments[0], str) and _writes(arguments):
            place = os.path.realpath(os.path.join(os.getcwd(), arguments[0]))
            found.extend([] if place.startswith(inside) else [f"wrote to {arguments[0]}"])

    sys.addaudithook(watch)
    return found


def _writes(arguments: tuple) -> bool:
    _, mode, flags = arguments
    return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(c in (mode or "") for c in "wax+")

"""How much memory the process took, how much is left, and how running out of it is recognised.

Imports no torch.
"""

import os
import sys
from pathlib import Path

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory", "bad_alloc")


class OutOfMemory(MemoryError):
    """There is too little memory; the message is one sentence that says what to change."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a GPU or the machine has no memory left. torch raises a RuntimeError for both."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def peak_memory() -> int | None:
    """Bytes: the most memory that this process ever had resident at once, without its workers; None on Windows."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, Linux KiB


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that a process of this run can still take: what the machine or the container has left, shared with the
    run's other processes on it. None where the system does not say.

    Args:
        root: of the file system; another one for tests.
    """
    found = [_available(root / "proc/meminfo"), _left_of_group(root / "sys/fs/cgroup")]
    known = [size for size in found if size is not None]
    return min(known) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if known else None


def _available(meminfo: Path) -> int | None:
    """Linux's own estimate of what can be taken without swapping."""
    try:
        lines = meminfo.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _left_of_group(folder: Path) -> int | None:
    """What the container's limit leaves (control groups, version 2 or 1); None without a limit.

    Cached files that nobody uses count as used there, although they give way; they are added.
    """
    for most, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, now = int((folder / most).read_text()), int((folder / used).read_text())
            stated = dict(line.split() for line in (folder / used).with_name("memory.stat").read_text().splitlines())
            return max(0, limit - now + int(stated.get(cached, 0)))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None

"""How much memory the process took, and how running out of it is recognised, on a GPU and in the machine.

Imports no torch.
"""

import sys

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory", "bad_alloc")


class OutOfMemory(MemoryError):
    """There is too little memory; the message is one sentence that says what to change."""


def first_line(error: BaseException) -> str:
    """What an error says, on one line of at most 200 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


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

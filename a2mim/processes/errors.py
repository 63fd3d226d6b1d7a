"""Errors that all processes raise together, and the question whether a command was started as several processes.

Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_SHARED = "Raised on all processes of this command."
_KINDS = (FileNotFoundError, FloatingPointError, MemoryError, OSError, ValueError)  # the first that fits travels


def tasks_of_step(environ: Mapping[str, str]) -> str:
    """How many tasks a SLURM step has started, "1" outside a step."""
    step = "SLURM_STEP_ID" in environ or environ.get("SLURM_PROCID", "0") != "0"
    return environ.get("SLURM_STEP_NUM_TASKS") or (environ.get("SLURM_NTASKS") if step else None) or "1"


def started_as(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, number of processes) as torchrun, or else a SLURM step, says; (0, 1) without them."""
    try:
        if "WORLD_SIZE" in environ or "RANK" in environ:
            return int(environ["RANK"]), int(environ["WORLD_SIZE"])
        return int(environ.get("SLURM_PROCID", 0)), int(tasks_of_step(environ))
    except (KeyError, ValueError):
        return 0, 1


def refuse_several(command: str) -> None:
    """Refuses a command whose work cannot be shared, where a launcher has started several processes of it.

    Raises:
        ValueError: they would do the same work several times, and write to the same files.
    """
    size = started_as()[1]
    if size > 1:
        raise share_error(
            ValueError(f"{command} runs in one process, and {size} were started: start it without torchrun or srun")
        )


def share_error(error: Exception) -> Exception:
    """The same error, marked as one that every process raises: the first one alone need say it."""
    if not is_shared(error):
        error.add_note(_SHARED)
    return error


def is_shared(error: BaseException) -> bool:
    """Whether every process of the command raises this error."""
    return _SHARED in getattr(error, "__notes__", ())


def portable(error: Exception, rank: int) -> Exception:
    """An error of a built-in class that says the same, so that another process can raise it."""
    if isinstance(error, OSError) and type(error).__module__ == "builtins" and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)  # Python makes the class of it that fits
    for kind in _KINDS:
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"process {rank}: {type(error).__name__}: {error}")

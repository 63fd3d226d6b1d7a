"""Four kinds of faults, kept separate.

- A sample is at fault (`UnreadableImage`, pixel_format.py): it is replaced or left out, and counted.
- A shard is at fault (`ShardError`): the run ends, or goes on without the shard if the user chose that.
- The machine is at fault (`MachineError`): the run ends, whatever the user chose about shards.
- The request is at fault (ValueError, FileNotFoundError): nothing starts.
"""

import errno
import os
from pathlib import Path

_NO_FILES, _NO_ROOM = (errno.EMFILE, errno.ENFILE), (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


class ShardError(OSError):
    """A whole shard cannot be used; the message has its path or URL and what is wrong."""


class MachineError(OSError):
    """Too many open files, a full disk or no memory: neither an image nor a shard is at fault."""


def refuse_machine_faults(error: OSError, path: str | os.PathLike | None = None) -> None:
    """Raises MachineError, with the remedy, if an OSError says that the machine lacks files, disk space or memory.

    Args:
        path: the file that was read or written, if the error does not name it.
    """
    if isinstance(error, MachineError):
        raise error
    name = os.fspath(path) if path is not None else error.filename
    if error.errno in _NO_FILES:
        raise MachineError(
            f"{name}: too many open files ({_open_files()}); allow more with `ulimit -n 4096`, or lower --num-workers"
        ) from None
    if error.errno in _NO_ROOM:
        raise MachineError(
            f"{name}: no room is left on the disk ({error.strerror}); free some, then start again: what is whole stays"
        ) from None
    if error.errno == errno.ENOMEM:
        raise MachineError(f"{name}: the machine has no memory left; lower --num-workers or the batch size") from None


def make_cache_folder(folder: Path) -> None:
    """Makes a folder of the cache; MachineError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse_machine_faults(error, folder)
        raise MachineError(
            f"{folder}: the cache cannot be kept there ({error.strerror}); name a folder that can be written to with"
            " --shard-cache DIR, or Access(cache_dir=…)"
        ) from None


def _open_files() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return "the system allows no more"
    return f"this process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}"

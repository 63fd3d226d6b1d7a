"""Files that appear whole or not at all.

A file is written under a random name in the same folder, flushed to disk, and renamed. So a reader never sees half of
it, a kill leaves the old file in place, and a link that somebody planted under the final name is replaced,
not followed.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

PARTIAL = ".partial"  # the end of the name of a file that is not finished


@contextlib.contextmanager
def partial_path(path: str | os.PathLike) -> Iterator[Path]:
    """The path of a new, empty file beside `path`; it becomes `path` when the block ends, and is deleted on an error.

    Raises:
        OSError: the folder does not exist or cannot be written to; or whatever the block raises, such as a full disk.
    """
    path = Path(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    partial = Path(name)
    try:
        os.fchmod(descriptor, 0o666 & ~_umask())  # mkstemp allows the owner alone
        os.close(descriptor)
        yield partial
        _flush(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w", **arguments) -> Iterator[IO[Any]]:
    """An open file that becomes `path` when the block ends.

    Args:
        mode: "w" (UTF-8 text) or "wb".
        arguments: for `open`.
    """
    if mode == "w":
        arguments = {"encoding": "utf-8"} | arguments
    with partial_path(path) as partial, partial.open(mode, **arguments) as file:
        yield file


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: str | os.PathLike, content: Any, indent: int | None = 2) -> None:
    """Writes plain values as UTF-8 JSON, with a newline at the end."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def delete_partials(folder: str | os.PathLike) -> None:
    """Deletes what killed writers left in a folder. Nobody else may be writing there."""
    for path in Path(folder).glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask

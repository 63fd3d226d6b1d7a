"""Files that appear whole or not at all.

A file is written under a random name in the same folder, flushed to disk, and renamed. So a reader never sees half of
it, a kill leaves the old file in place, and a link that somebody put under the final name is replaced and not followed.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # typeshed knows no module that may be absent

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # errors of file systems without locks
FULL = {errno.ENOSPC, errno.EDQUOT}  # no space left, or none left for this user
PARTIAL = ".partial"  # suffix of an unfinished file
STAGING = ".staging-"  # prefix of a folder that is filled, and moved once it is whole
MOST_TEXT = 64 << 20  # bytes of a text or JSON file that is read


@contextlib.contextmanager
def partial_path(path: str | os.PathLike, private: bool = False) -> Iterator[Path]:
    """The path of a new, empty file beside `path`. It becomes `path` when the block ends, and is deleted on an error.

    Args:
        private: only the owner may read and write it.

    Raises:
        OSError: the folder does not exist or cannot be written to. Errors of the block, such as a full disk, pass on.
    """
    path = Path(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    partial = Path(name)
    try:
        if not private:  # mkstemp makes a private file
            os.fchmod(descriptor, 0o666 & ~_umask())
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

    Raises:
        OSError: with the name of the file, where the disk is full.
    """
    if mode == "w":
        arguments = {"encoding": "utf-8"} | arguments
    try:
        with partial_path(path) as partial, partial.open(mode, **arguments) as file:
            yield file
    except OSError as error:
        if error.errno in FULL:  # the system names no file when a write fails, or the unfinished one
            error.filename = os.fspath(path)
        raise


def appending(path: str | os.PathLike, newline: str | None = None) -> IO[str]:
    """A text file that is open to add lines at its end; a link in its place is not followed.

    Args:
        newline: as `open` takes it.

    Raises:
        OSError: it cannot be opened, or a link is in its place.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link is in the place of the file; remove it", os.fspath(path)) from None
        raise
    return os.fdopen(descriptor, "a", encoding="utf-8", newline=newline)


def make_own_folder(path: str | os.PathLike) -> None:
    """Makes a folder for what a command writes beside what it was given, unless it is there.

    Raises:
        ValueError: it is a link, or holds a folder that is one: what is written would land in another place.
    """
    refuse_linked_folders(path)
    Path(path).mkdir(parents=True, exist_ok=True)


def refuse_linked_folders(path: str | os.PathLike) -> None:
    """ValueError where a folder is a link, or a folder below it is one; the folders above it may be links."""
    path = Path(path)
    below = (Path(at) / name for at, folders, _ in os.walk(path) for name in folders)
    for folder in (path, *below):
        if folder.is_symlink():
            raise ValueError(
                f"{folder} is a link to another place, and a2mim writes nothing through links in a folder that may"
                " have come from others: remove the link, or name that other place yourself"
            )


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    with replacing(path, "wb") as file:
        file.write(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8."""
    with replacing(path) as file:
        file.write(text)


def write_private(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 that only the owner may read (mode 0600)."""
    with partial_path(path, private=True) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Any, indent: int | None = 2) -> None:
    """Writes plain values as UTF-8 JSON, with a newline at the end."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def read_text(path: str | os.PathLike, most: int = MOST_TEXT) -> str:
    """The UTF-8 text of a regular file of at most `most` bytes. A pipe or a device could be read for ever.

    Raises:
        ValueError: the file is something else; names it.
        OSError: as `open` does.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{os.fspath(path)} cannot be read: it is no regular file")
        if status.st_size > most:
            raise ValueError(f"{os.fspath(path)} cannot be read: it has {status.st_size:,} bytes, at most {most:,} fit")
        try:
            return file.read(most).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{os.fspath(path)} cannot be read: it is no text in UTF-8") from None


def read_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file, of any type.

    Raises:
        ValueError: the file holds none, or is nested too deeply; names it.
        OSError: as `open` does.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} cannot be read: it is incomplete or not JSON ({error})") from None


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, too large, or holds no object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{os.fspath(path)} cannot be read: it holds no JSON object.")
    return content


class DiskFull(OSError):
    """The disk is full; the message is one sentence with the name of the file."""


@contextlib.contextmanager
def telling_full_disk(path: str | os.PathLike, advice: str) -> Iterator[None]:
    """Turns a full disk, found while `path` is written, into one sentence that ends with `advice`."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:  # libraries hide the system's error behind their own
        if not is_full_disk(error):
            raise
        raise DiskFull(f"{path} cannot be written, the disk is full: {advice}") from error


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, is the system's "no space left"."""
    chain: BaseException | None = error
    while chain is not None:
        if (isinstance(chain, OSError) and chain.errno in FULL) or os.strerror(errno.ENOSPC) in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def reserve(file: IO[Any], size: int) -> None:
    """Reserves `size` bytes of disk for a file that is open to read and write; its content does not change.

    Without this, a memory-mapped file can end the process with a bus error, when it is written and the disk is full.

    Raises:
        OSError: ENOSPC, the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    _rewrite(file, size)


def _rewrite(file: IO[Any], size: int) -> None:
    """For systems that cannot reserve: reads a sparse file, zeros included, and writes it back."""
    for start in range(0, size, 2**20):
        length = min(2**20, size - start)
        file.seek(start)
        block = file.read(length).ljust(length, b"\0")
        file.seek(start)
        file.write(block)
    file.flush()


def delete_partials(folder: str | os.PathLike, older_than: float = 0.0, name: str = "*") -> None:
    """Deletes partial files that killed writers left in a folder.

    Args:
        older_than: seconds since the last change. If other processes may be writing, give the longest time that one of
            them can take.
        name: only partial files of this name; a glob pattern.
    """
    for path in Path(folder).glob(f".{name}.*{PARTIAL}"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime >= older_than:
                path.unlink()


def delete_staging(folder: str | os.PathLike, older_than: float = 0.0) -> None:
    """Deletes folders that killed processes left while they were filled; see `STAGING`. Arguments as above."""
    for path in Path(folder).glob(f"{STAGING}*"):
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink() and time.time() - path.stat().st_mtime >= older_than:
                shutil.rmtree(path, ignore_errors=True)


def open_lock(path: str | os.PathLike, wait: bool = True, shared: bool = False) -> IO[Any]:
    """An open file with a lock. The lock ends when the file is closed or the process dies.

    If the system or the file system has no locks, a warning says so, and the file is returned without one.

    Args:
        wait: wait for a process that holds the lock.
        shared: several holders may share the lock, if none holds it alone.

    Raises:
        BlockingIOError: `wait` is False, and another process or another open file of this one holds the lock.
        OSError: the file cannot be made, or a link is in its place, which is not followed.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link is in the place of the lock file; remove it", os.fspath(path)) from None
        raise
    try:
        _lock(file, wait, shared)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
        warnings.warn(
            f"{os.path.dirname(os.path.abspath(path))}: no locks here ({error.strerror}); make sure that no two"
            " processes write there at the same time",
            stacklevel=2,
        )
    return file


def _lock(file: IO[Any], wait: bool, shared: bool) -> None:
    if fcntl is None:
        raise OSError(errno.ENOSYS, "this system has none")
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)


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

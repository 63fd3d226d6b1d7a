"""Copies of remote shards on disk: whole, verified before they get their name, within a size limit.

A copy is in shards/<hash of the whole address>/ with a note of its size and tag. If the server now reports others, the
shard is fetched again. Several processes may share the folder: one of them fetches, and the others wait for its lock.
The kernel releases the lock if the process dies.
"""

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from a2mim.data.access import Access
from a2mim.data.errors import ShardError, make_cache_folder, refuse_machine_faults
from a2mim.data.remote.addresses import base_name, public_name
from a2mim.data.remote.origins import origin_of
from a2mim.data.remote.retry import PassingFault, persist
from a2mim.data.remote.transfer import BLOCK, Bounded, Stat
from a2mim.data.shards.tarfiles import TarError, members
from a2mim.files import open_lock, read_json, write_json

_NOTE, _LOCK, _PART = ".json", ".lock", ".part"
_STALE_PART = 24 * 3600  # seconds after which a partial file is taken as left behind by a killed process


class ShardCache:
    """The copies in one `access.folder`."""

    def __init__(self, access: Access):
        self.access = access
        self.folder = access.folder / "shards"

    def find(self, address: str, stat: Stat | None) -> Path | None:
        """The copy, if it exists and is what the server has now; stat=None accepts any copy."""
        path = self._path_of(address)
        with contextlib.suppress(OSError, ValueError):
            fetched, changed = _noted(path)
            now = path.stat()
            whole = now.st_size == fetched.size and changed in (None, now.st_mtime_ns)
            if whole and (stat is None or _same(fetched, stat)):
                with contextlib.suppress(OSError):  # records the time of the last use; the oldest copies are dropped
                    os.utime(path, ns=(time.time_ns(), now.st_mtime_ns))
                return path
        return None

    def known(self, address: str) -> Stat | None:
        """Size and tag of the copy, if there is one."""
        if self.find(address, None) is None:
            return None
        return _noted(self._path_of(address))[0]

    def fetch(self, address: str, stat: Stat, verify: Callable[[str], object] | None = None) -> Path:
        """The copy, downloaded if it is missing; ShardError, with the address, for errors that are not temporary.

        Args:
            verify: called with the path of a new copy before it gets its name; may raise TarError. None: checks every
                header and the end of the archive.
        """
        path = self._path_of(address)
        make_cache_folder(path.parent)
        with _locked(path):
            copy = self.find(address, stat)
            return copy or self._download(address, stat, path, verify or _walk)

    def _download(self, address: str, stat: Stat, path: Path, verify) -> Path:
        origin = origin_of(address, self.access, stat)
        with _locked(self.folder / "room"):
            self._make_room(stat.size or 0, address)
            descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f"{stat.size or 0}-", suffix=_PART)
        try:
            most = self.access.cache_bytes if stat.size is None else stat.size + BLOCK
            with os.fdopen(descriptor, "wb") as file:
                bounded = Bounded(file, most, address)
                persist(lambda: _transfer(origin, bounded, part, stat), self.access, file.tell)
            try:
                verify(part)
            except TarError as error:
                raise TarError(str(error).replace(part, origin.name)) from None
            size = os.path.getsize(part)
            if stat.size is None:
                with _locked(self.folder / "room"):
                    self._make_room(0, address)
            path.unlink(missing_ok=True)  # before the note of the new copy replaces its own
            changed = os.stat(part).st_mtime_ns  # a copy that was written to later is not used
            note = {"address": origin.name, "size": size, "tag": stat.tag, "changed": changed}
            write_json(f"{path}{_NOTE}", note)
            os.replace(part, path)
        except FileNotFoundError as error:
            raise ShardError(str(error)) from None
        except OSError as error:
            refuse_machine_faults(error, self.folder)
            raise
        finally:
            if os.path.exists(part):
                os.unlink(part)
        return path

    def _make_room(self, size: int, address: str) -> None:
        """Drops the copies that were unused for longest, until `size` more bytes are within the limit."""
        bound = self.access.cache_bytes
        if size > bound:
            raise ValueError(
                f"{public_name(address)} has {size:,} bytes and the cache may hold {bound:,}; raise --shard-cache-gb,"
                " or write smaller shards with `a2mim shards reshard`"
            )
        total, copies = size, []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                if path.suffix == _PART and time.time() - status.st_mtime > _STALE_PART:
                    path.unlink()
                elif path.suffix == _PART:  # in progress: counts with the size in its name
                    total += max(status.st_size, int(path.name.partition("-")[0]))
                elif path.suffix not in (_NOTE, _LOCK):
                    total += status.st_size
                    copies.append((status.st_atime, status.st_size, path))
        for _, length, path in sorted(copies):
            if total <= bound:
                return
            with contextlib.suppress(OSError):  # a process that has it open can still read it
                path.unlink()
                total -= length

    def _path_of(self, address: str) -> Path:
        """The path of a copy. It depends on the whole address, because two data sets may share a base name."""
        whole = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return self.folder / whole / re.sub(r"[^\w.-]+", "_", base_name(address))


def _same(fetched: Stat, now: Stat) -> bool:
    """True if size and tag agree, as far as the server reports them."""
    return now.size in (None, fetched.size) and (now.tag is None or now.tag == fetched.tag)


def _transfer(origin, file, part: str, stat: Stat) -> None:
    """Downloads the shard; its size and checksum must be those that the server reported."""
    origin.download(file)
    file.flush()
    if stat.size is not None and file.tell() != stat.size:
        came = file.tell()
        with open(part, "rb") as written:
            if written.read(16).lstrip()[:1] == b"<":
                raise ShardError(f"{origin.name}: a web page of {came} bytes came in its place; is a login needed?")
        _begin_again(file)
        raise PassingFault(f"{origin.name}: {came} bytes came, {stat.size} were promised")
    if stat.checksum:
        algorithm, wanted = stat.checksum
        with open(part, "rb") as written:
            digest = hashlib.file_digest(written, algorithm).hexdigest()
        if digest != wanted:
            _begin_again(file)
            raise PassingFault(f"{origin.name}: the {algorithm} is {digest}, the server says {wanted}")


def _begin_again(file) -> None:
    file.seek(0)
    file.truncate()


def _walk(path: str) -> None:
    for _ in members(path):
        pass


@contextlib.contextmanager
def _locked(path: Path):
    with open_lock(f"{path}{_LOCK}"):
        yield


def _noted(path: Path) -> tuple[Stat, int | None]:
    """What the note beside a copy says: its size and tag, and when it was written, in nanoseconds.

    Raises:
        ValueError: the note says something else.
    """
    note = read_json(f"{path}{_NOTE}")
    kinds = {"size": int | None, "tag": str | None, "changed": int | None}
    if not isinstance(note, dict) or not all(isinstance(note.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"{path}{_NOTE} is no note of a copy")
    return Stat(note.get("size"), note.get("tag")), note.get("changed")

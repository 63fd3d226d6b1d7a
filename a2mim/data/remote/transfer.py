"""Shared by all transfers: facts about a remote file, a least speed, and appending to a file."""

import time
from dataclasses import dataclass
from typing import BinaryIO

from a2mim.data.errors import ShardError
from a2mim.data.remote.addresses import public_name
from a2mim.data.remote.retry import PassingFault

BLOCK = 1 << 20
_SLOWEST = 1000  # least speed in bytes per second, over a whole `timeout`


@dataclass(frozen=True)
class Stat:
    """Facts about a remote shard, known before it is read.

    Args:
        size: in bytes; None: not reported.
        tag: changes with the content (ETag, or the time of the last change); None: not reported.
        checksum: (name of a hashlib algorithm, hexadecimal digest) if the server reports one.
    """

    size: int | None = None
    tag: str | None = None
    checksum: tuple[str, str] | None = None


def refuse_another(name: str, wanted: str | None, present: str | None) -> None:
    """ShardError if the tag differs: the offsets of an index are valid only for the content that was indexed."""
    if wanted and present and wanted != present:
        raise ShardError(f"{name}: changed since it was indexed; start anew to index it again")


class Bounded:
    """A file for an origin's `download` that takes at most `most` bytes; ShardError for more."""

    def __init__(self, file: BinaryIO, most: int, name: str):
        self.file, self.most, self.name = file, most, public_name(name)

    def write(self, data: bytes) -> int:
        if self.file.tell() + len(data) > self.most:
            raise ShardError(f"{self.name}: more than {self.most:,} bytes came; given up")
        return self.file.write(data)

    def __getattr__(self, attribute: str):
        return getattr(self.file, attribute)


class Watch:
    """Raises PassingFault when less than 1 kB/s arrived over one timeout."""

    def __init__(self, name: str, timeout: float):
        self.name, self.timeout = name, timeout
        self.since, self.came = time.monotonic(), 0

    def count(self, size: int) -> None:
        self.came += size
        passed = time.monotonic() - self.since
        if passed < self.timeout:
            return
        if self.came < _SLOWEST * passed:
            raise PassingFault(f"{self.name}: stalled, {self.came} bytes in {passed:.1f} s")
        self.since, self.came = time.monotonic(), 0


def append(file: BinaryIO, read, watch: Watch) -> None:
    """Writes what `read()` returns until it returns nothing."""
    while data := read():
        file.write(data)
        watch.count(len(data))

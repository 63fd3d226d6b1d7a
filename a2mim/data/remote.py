"""What is not a local file: http(s), the object stores that fsspec knows, and the output of a command.

An origin answers for one address. It has `name` (for messages, without a password), `ranges` (whether parts can be
read) and three methods:

- `stat()`: a Stat; FileNotFoundError when the place has no such thing;
- `download(file)`: appends what `file`, open for writing, does not have yet;
- `read(offset, size)`: exactly these bytes.

`tag`, where it is set, is the one of the content that is wanted. All raise PassingFault where another attempt may help
and ShardError where not; none waits longer than `access.timeout`.
"""

import os
import re
import time
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from a2mim.data.access import Access
from a2mim.data.errors import ShardError
from a2mim.data.retry import PassingFault

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
BLOCK = 1 << 20
_SLOWEST = 1000  # bytes a second, over a whole `timeout`


@dataclass(frozen=True)
class Stat:
    """What is known of a remote shard before it is read.

    Args:
        size: in bytes; None: not told.
        tag: changes with the content (ETag, or the time of the last change); None: not told.
        checksum: (name of a hashlib algorithm, hexadecimal digest) where the server gives one.
    """

    size: int | None = None
    tag: str | None = None
    checksum: tuple[str, str] | None = None


def is_remote(shard: str) -> bool:
    return shard.startswith("pipe:") or (scheme_of(shard) not in (None, "file"))


def scheme_of(address: str) -> str | None:
    found = _SCHEME.match(address)
    return found.group(1).lower() if found else None


def local_path(shard: str) -> str:
    """A path as it is, and that of a file:// URL."""
    return unquote(urlsplit(shard).path) if scheme_of(shard) == "file" else shard


def origin_of(address: str, access: Access, stat: Stat | None = None):
    """Who answers for a remote address; ValueError when it may not or cannot be asked.

    Args:
        stat: what is expected there; ShardError when it has changed, where the answers tell.
    """
    origin = _origin(address, access)
    origin.tag = stat.tag if stat else None
    return origin


def _origin(address: str, access: Access):
    if address.startswith("pipe:"):
        from a2mim.data.pipes import Pipe

        return Pipe(address, access)
    if scheme_of(address) in ("http", "https"):
        from a2mim.data.web import WebFile

        return WebFile(address, access)
    from a2mim.data.object_stores import StoredObject

    return StoredObject(address, access)


def base_name(address: str) -> str:
    """The file name of a shard: a part of its samples' keys, so the same wherever the shard is reached."""
    if address.startswith("pipe:"):
        names = re.findall(r"([\w.-]+\.tar)\b", address)
        return names[-1] if names else re.sub(r"\W+", "_", address)[-64:]
    return os.path.basename(urlsplit(address).path if is_remote(address) else address) or "shard.tar"


def refuse_another(name: str, wanted: str | None, found: str | None) -> None:
    """ShardError when a tag is another: places in an index are those of the content that it was made from."""
    if wanted and found and wanted != found:
        raise ShardError(f"{name}: changed since it was indexed; start anew to index it again")


class Watch:
    """Raises PassingFault when less than 1 kB a second came over a whole timeout: silence with a pulse."""

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

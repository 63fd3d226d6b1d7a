"""Images inside tar files: one read at a known offset per sample, from local and remote shards."""

import contextlib
import errno
import os
from collections import OrderedDict
from typing import Any

import numpy as np

from a2mim.data.access import Access
from a2mim.data.decode import UnreadableImage
from a2mim.data.errors import ShardError, refuse_machine_faults
from a2mim.data.read_ahead import ReadAhead
from a2mim.data.remote.origins import origin_of
from a2mim.data.remote.retry import persist
from a2mim.data.shards.cache import ShardCache
from a2mim.data.shards.index_file import stamp_of
from a2mim.data.shards.indexing import Shard

MAX_OPEN = 128  # file descriptors of one store
SHARE_OPEN = 8  # a store uses at most 1/8 of the process's descriptors: other stores and libraries need some too
REQUESTS = 32  # byte ranges requested at once; fewer would leave a connection with 20 ms latency idle
TRANSFERS = 2  # whole shards fetched at once


class TarStore:
    """Images inside tar files.

    Args:
        shards: local and remote shards, with their sizes.
        ends: (shards,) number of samples up to and including each shard.
        offsets, sizes: (N,) of each image, in bytes.
        access: how remote shards are reached; `remote` must be "shards" or "ranges".
    """

    def __init__(self, shards: list[Shard], ends: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, access: Access):
        self._open: OrderedDict[Any, Any] = OrderedDict()
        self._lost: dict[Any, Any] = {}
        self._named: tuple[int | None, list[str]] = (None, [])
        self.shards, self.ends, self.offsets, self.sizes, self.access = shards, ends, offsets, sizes, access
        self._ranges = ReadAhead(REQUESTS)
        self._copies = ReadAhead(TRANSFERS)

    def content(self, i: int) -> bytes:
        """Raises ShardError, or UnreadableImage if the user chose to skip bad shards."""
        shard = self._shard_of(i)
        try:
            if shard in self._lost:
                raise ShardError(self._lost[shard])
            return self._ranges.take(i, self._range) if self._by_range(shard) else self._read(shard, i)
        except ShardError as error:
            self._lost[shard] = str(error)  # a second request would wait for the same server again
            if self.access.skip_bad_shards:
                raise UnreadableImage("shard lost", str(error)) from None
            raise

    @property
    def nearby(self) -> int:
        """Number of images in the first shard, for which no second shard has to be opened or fetched."""
        return int(self.ends[0])

    def will_need(self, ids: np.ndarray) -> None:
        """Starts to read these samples, so that disk and network work while other samples are decoded."""
        for i in map(int, ids):
            shard = self._shard_of(i)
            if self._by_range(shard):
                self._ranges.ask(i, self._range)
            elif self.shards[shard].stat is not None and shard not in self._open:
                self._copies.ask(shard, self._copy)
            elif hasattr(os, "posix_fadvise"):  # macOS has none
                with contextlib.suppress(OSError):
                    span = int(self.offsets[i]), int(self.sizes[i])
                    os.posix_fadvise(self._descriptor(shard), *span, os.POSIX_FADV_WILLNEED)

    def name(self, i: int) -> str:
        """Reads the name from the index on disk. Names are needed rarely and would use most of the memory."""
        shard = self._shard_of(i)
        first = self.ends[shard - 1] if shard else 0
        address = self.shards[shard].name
        try:
            if self._named[0] != shard:  # caches one shard's names, for callers that want all names in order
                self._named = shard, self.shards[shard].keys(self.access)
            return f"{address}/{self._named[1][i - first]}"
        except OSError:  # the shard is gone, and its names with it
            return f"{address}, byte {self.offsets[i]}"

    def _shard_of(self, i: int) -> int:
        return int(np.searchsorted(self.ends, i, side="right"))

    def _by_range(self, number: int) -> bool:
        shard = self.shards[number]
        return self.access.remote == "ranges" and shard.stat is not None and not shard.address.startswith("pipe:")

    def _range(self, i: int) -> bytes:
        address = self.shards[self._shard_of(i)].address
        origin = origin_of(address, self.access, self.shards[self._shard_of(i)].stat)
        try:
            return persist(lambda: origin.read(int(self.offsets[i]), int(self.sizes[i])), self.access)
        except FileNotFoundError as error:
            raise ShardError(f"{error}; it was there when it was indexed") from None

    def _copy(self, number: int) -> str:
        shard = self.shards[number]
        assert shard.stat is not None  # only remote shards are copied
        return os.fspath(ShardCache(self.access).fetch(shard.address, shard.stat))

    def _read(self, shard: int, i: int) -> bytes:
        address, offset, size = self.shards[shard].name, int(self.offsets[i]), int(self.sizes[i])
        try:
            try:
                data = os.pread(self._descriptor(shard), size, offset)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                os.close(self._open.pop(shard))
                data = os.pread(self._descriptor(shard), size, offset)
        except ShardError:
            raise
        except OSError as error:
            refuse_machine_faults(error, address)
            raise ShardError(f"{address}: {error.strerror}") from None
        if len(data) < size:
            raise ShardError(f"{address}: byte {offset}: {len(data)} of {size} bytes: cut short since it was indexed")
        return data

    def _descriptor(self, shard: int) -> int:
        """The descriptor of a shard. Reads give their offset, so forked workers may share the parent's descriptors."""
        if shard not in self._open:
            if len(self._open) >= _most_open():
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = self._newly_opened(shard)
        self._open.move_to_end(shard)
        self._refuse_changed(shard)
        return self._open[shard]

    def _newly_opened(self, number: int) -> int:
        """Opens a shard. If too many files are open, closes those of this store first."""
        shard = self.shards[number]
        for attempt in range(2):
            try:
                return _opened(shard.address) if shard.stat is None else self._opened_copy(number)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or attempt or not self._open:
                    raise
                self.close()
        raise AssertionError

    def _refuse_changed(self, number: int) -> None:
        """ShardError if the open file is not what was indexed, because it was replaced or written to."""
        shard, descriptor = self.shards[number], self._open[number]
        now = os.fstat(descriptor)
        if shard.size is not None and now.st_size != shard.size:
            what = f"from {shard.size} to {now.st_size} bytes"
        elif shard.stat is None and shard.stamp is not None and not np.array_equal(stamp_of(now), shard.stamp):
            what = "without a change of its size"
        else:
            return
        os.close(self._open.pop(number))
        raise ShardError(f"{shard.name}: changed since it was indexed, {what}; start anew to index it again")

    def _opened_copy(self, shard: int) -> int:
        """Opens a copy. If it was dropped from the cache between its arrival and its use, it is fetched again."""
        for attempt in range(3):
            with contextlib.suppress(FileNotFoundError):
                return _opened(self._copies.take(shard, self._copy) if attempt == 0 else self._copy(shard))
        raise ShardError(f"{self.shards[shard].name}: dropped from the cache as soon as it came; raise its bound")

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self):
        self.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}


def _most_open() -> int:
    """Greatest number of file descriptors that one store may keep open."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_OPEN
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_OPEN if allowed < 0 else max(1, min(MAX_OPEN, allowed // SHARE_OPEN))


def _opened(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

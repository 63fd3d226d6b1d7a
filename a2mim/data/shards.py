"""Tar shards, opened by number: any sample is one read at a known offset, wherever the shard lies."""

import contextlib
import errno
import io
import os
import warnings
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np

from a2mim.data.access import DEFAULT, Access
from a2mim.data.dataset import ImageDataset
from a2mim.data.decode import UnreadableImage
from a2mim.data.errors import ShardError
from a2mim.data.indexing import Shard, index_all, look_at
from a2mim.data.labels import resolve
from a2mim.data.read_ahead import ReadAhead
from a2mim.data.remote import origin_of
from a2mim.data.retry import persist
from a2mim.data.shard_cache import ShardCache
from a2mim.data.shard_index import cached_place

MAX_OPEN = 128  # file descriptors
REQUESTS = 32  # byte ranges under way at once: less leaves a line with 20 ms of latency idle
TRANSFERS = 2  # whole shards under way at once


class TarStore:
    """Images inside tar files.

    Args:
        shards: local and remote ones, with their sizes.
        ends: (shards,) number of samples up to and including each shard.
        offsets, sizes: (N,) of each image, in bytes.
        access: how remote ones are reached; `remote` must be decided.
    """

    def __init__(self, shards: list[Shard], ends: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, access: Access):
        self._open, self._lost, self._named = OrderedDict(), {}, (None, [])
        self.shards, self.ends, self.offsets, self.sizes, self.access = shards, ends, offsets, sizes, access
        self._ranges = ReadAhead(REQUESTS)
        self._copies = ReadAhead(TRANSFERS)

    def content(self, i: int) -> bytes:
        """Raises ShardError, or UnreadableImage when the user chose to go on without shards that are lost."""
        shard = self._shard_of(i)
        try:
            if shard in self._lost:
                raise ShardError(self._lost[shard])
            return self._ranges.take(i, self._range) if self._by_range(shard) else self._read(shard, i)
        except ShardError as error:
            self._lost[shard] = str(error)  # asked again, a server that is gone would be waited for again
            if self.access.skip_bad_shards:
                raise UnreadableImage("shard lost", str(error)) from None
            raise

    def will_need(self, ids: np.ndarray) -> None:
        """Begins to read these samples, so that disk and network work while others are decoded."""
        for i in map(int, ids):
            shard = self._shard_of(i)
            if self._by_range(shard):
                self._ranges.ask(i, self._range)
            elif self.shards[shard].stat is not None and shard not in self._open:
                self._copies.ask(shard, self._copy)
            elif hasattr(os, "posix_fadvise"):  # not on a Mac
                with contextlib.suppress(OSError):
                    place = int(self.offsets[i]), int(self.sizes[i])
                    os.posix_fadvise(self._descriptor(shard), *place, os.POSIX_FADV_WILLNEED)

    def name(self, i: int) -> str:
        """Looked up in the index on disk: names are wanted rarely, and would be most of what is held in memory."""
        shard = self._shard_of(i)
        first = self.ends[shard - 1] if shard else 0
        address = self.shards[shard].address
        try:
            if self._named[0] != shard:  # one shard's, for whoever wants the names of all in turn
                self._named = shard, self.shards[shard].keys(self.access)
            return f"{address}/{self._named[1][i - first]}"
        except OSError:  # a shard that is gone has taken its names along
            return f"{address}, byte {self.offsets[i]}"

    def _shard_of(self, i: int) -> int:
        return int(np.searchsorted(self.ends, i, side="right"))

    def _by_range(self, shard: int) -> bool:
        found = self.shards[shard]
        return self.access.remote == "ranges" and found.stat is not None and not found.address.startswith("pipe:")

    def _range(self, i: int) -> bytes:
        address = self.shards[self._shard_of(i)].address
        origin = origin_of(address, self.access, self.shards[self._shard_of(i)].stat)
        try:
            return persist(lambda: origin.read(int(self.offsets[i]), int(self.sizes[i])), self.access)
        except FileNotFoundError as error:
            raise ShardError(f"{error}; it was there when it was indexed") from None

    def _copy(self, shard: int) -> str:
        found = self.shards[shard]
        return os.fspath(ShardCache(self.access).fetch(found.address, found.stat))

    def _read(self, shard: int, i: int) -> bytes:
        address, offset, size = self.shards[shard].address, int(self.offsets[i]), int(self.sizes[i])
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
            raise ShardError(f"{address}: {error.strerror}") from None
        if len(data) < size:
            raise ShardError(f"{address}: byte {offset}: {len(data)} of {size} bytes: cut short since it was indexed")
        return data

    def _descriptor(self, shard: int) -> int:
        """Positions are given with every read, so forked workers may share what their parent opened."""
        if shard not in self._open:
            if len(self._open) >= MAX_OPEN:
                os.close(self._open.popitem(last=False)[1])
            found = self.shards[shard]
            self._open[shard] = _opened(found.address) if found.stat is None else self._opened_copy(shard)
            now = os.fstat(self._open[shard]).st_size
            if found.size is not None and now != found.size:
                os.close(self._open.pop(shard))
                raise ShardError(f"{found.address}: changed since it was indexed, from {found.size} to {now} bytes")
        self._open.move_to_end(shard)
        return self._open[shard]

    def _opened_copy(self, shard: int) -> int:
        """A copy may be dropped for others between its arrival and its use: then it is fetched again."""
        for attempt in range(3):
            with contextlib.suppress(FileNotFoundError):
                return _opened(self._copies.take(shard, self._copy) if attempt == 0 else self._copy(shard))
        raise ShardError(f"{self.shards[shard].address}: dropped from the cache as soon as it came; raise its bound")

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self):
        self.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}


def _opened(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def open_shards(addresses: list[str], title: str, access: Access = DEFAULT) -> ImageDataset:
    """Indexes shards (paths and URLs); refuses when any is missing, damaged, named twice, or when none has an image.

    With `access.skip_bad_shards` the missing and damaged ones are left out, and named in `skipped` of the result.
    """
    if not addresses:
        raise ValueError("an empty list of shards was given; name at least one")
    if len(set(addresses)) < len(addresses):
        twice = next(address for address in addresses if addresses.count(address) > 1)
        raise ValueError(f"the shard {twice!r} is named more than once; its images would be too")
    shards = look_at(addresses, access)
    if not access.skip_bad_shards:
        refuse_missing(shards)
    index_all(shards, access)
    skipped = [str(shard.fault) for shard in shards if shard.fault is not None]
    if skipped and (not access.skip_bad_shards or len(skipped) == len(shards)):
        _refuse_damaged(shards)
    shards = [shard for shard in shards if shard.fault is None]
    sizes = np.array([len(shard.index.samples) for shard in shards], np.int64)
    if not sizes.sum():
        raise ValueError(
            f"no images in {title!r}: a sample is a member such as 000001.jpg, with its label in 000001.cls"
        )
    try:
        labels, names = resolve([shard.index for shard in shards], _listed_classes(shards[0], access))
    except ValueError as error:
        raise ValueError(f"{title}: {error}") from None
    keys, offsets, lengths = (
        np.concatenate([shard.index.samples[column] for shard in shards]) for column in ("key", "offset", "size")
    )
    duplicates = sum(shard.index.duplicates for shard in shards)
    incomplete = sum(shard.index.incomplete for shard in shards)
    unchecked = sum(shard.index.unchecked for shard in shards)
    _tell(title, skipped, unchecked)
    for shard in shards:
        shard.index = None  # the arrays above are all that is needed
    store = TarStore(shards, np.cumsum(sizes), offsets, lengths, _decided(access, shards))
    dataset = ImageDataset(store, title, keys, labels, sizes, names, duplicates=duplicates)
    dataset.skipped, dataset.incomplete, dataset.unchecked = skipped, incomplete, unchecked
    return dataset


def _tell(title: str, skipped: list[str], unchecked: int) -> None:
    """What a user chose and should not forget, whichever command it is."""
    if skipped:
        warnings.warn(f"{title}: {len(skipped)} bad shards are left out: {_few(skipped)}", stacklevel=4)
    if unchecked:
        said = (
            f"{unchecked} shards are indexed by DALI's word, their headers unchecked; remove their .index.npz to check"
        )
        warnings.warn(f"{title}: {said}", stacklevel=4)


def refuse_missing(shards: list[Shard]) -> None:
    """FileNotFoundError with the first few of all shards that are not there."""
    missing = [shard.address for shard in shards if isinstance(shard.fault, FileNotFoundError)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} shards missing: {_few(missing)}; give a folder, tar shards, a URL or"
            " 'photos', or go on without with --skip-bad-shards"
        )


def _refuse_damaged(shards: list[Shard]) -> None:
    faults = [shard.fault for shard in shards if shard.fault is not None]
    if len(shards) == 1:
        raise faults[0]
    said = "; ".join(str(fault) for fault in faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    raise type(faults[0])(
        f"{len(faults)} of {len(shards)} shards cannot be used (--skip-bad-shards leaves them out): {said}"
    )


def _decided(access: Access, shards: list[Shard]) -> Access:
    """What "auto" is for these shards: those that do not fit into the cache together would be fetched in each epoch."""
    if access.remote != "auto":
        return access
    total = sum(shard.size or 0 for shard in shards if shard.stat is not None)
    return replace(access, remote="shards" if total <= access.cache_bytes else "ranges")


def _listed_classes(shard: Shard, access: Access) -> list[str] | None:
    """classes.txt beside the first shard, a name per line; None where there is none."""
    folder, slash, _ = shard.address.rpartition("/")
    if shard.address.startswith("pipe:") or (shard.stat is not None and "?" in shard.address):
        return None
    beside = f"{folder}{slash}classes.txt"
    listed = Path(beside) if shard.stat is None else _fetched_text(beside, access)
    return listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else None


def _fetched_text(address: str, access: Access) -> Path:
    """The path of a copy of a small remote file, which is not there when the server has none. A server that cannot be
    asked is believed to have what it had before.
    """
    place, found = cached_place(address, access).with_suffix(".txt"), io.BytesIO()
    try:
        origin = origin_of(address, access)
        persist(lambda: origin.download(found), access, found.tell)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(found.getvalue())
    except FileNotFoundError:
        place.unlink(missing_ok=True)
    except ShardError:
        pass
    return place


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

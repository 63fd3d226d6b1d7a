"""The indices of many shards: loaded from the cache, or made, several at a time.

All shards are looked at before anything is refused, so that one error names everything that is wrong.
"""

import os
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from a2mim.data.access import Access
from a2mim.data.errors import ShardError, refuse_machine_faults
from a2mim.data.parallel import each
from a2mim.data.remote.addresses import base_name, is_remote, public_name
from a2mim.data.remote.origins import origin_of
from a2mim.data.remote.retry import persist
from a2mim.data.remote.transfer import Bounded, Stat
from a2mim.data.shards import index as shard_index
from a2mim.data.shards import index_file
from a2mim.data.shards.cache import ShardCache
from a2mim.data.shards.index import ShardIndex
from a2mim.files import PARTIAL
from a2mim.text import ProgressBar

_ASKED_AT_ONCE, _FETCHED_AT_ONCE = 16, 4
_SHARDS_A_PROCESS = 4  # fewer shards are scanned before a second process has started


@dataclass
class Shard:
    """One shard and what is known about it. `stat` is None for a local shard. `index` is None if the shard cannot be
    used. `stamp` is the one under which it was indexed.
    """

    address: str
    size: int | None = None  # bytes
    stat: Stat | None = None
    stamp: np.ndarray | None = None
    index: ShardIndex | None = None
    fault: Exception | None = None

    @property
    def name(self) -> str:
        """The address without secrets, for messages."""
        return public_name(self.address)

    def keys(self, access: Access) -> list[str]:
        """webdataset's key of each sample, from the cached index if there is one."""
        keys = self.index.keys if self.index else None
        if keys is None and self.stamp is not None:
            keys = index_file.load_keys(paths_of(self, access), self.stamp)
        if keys is None:
            copy = self.address if self.stat is None else ShardCache(access).fetch(self.address, self.stat)
            keys = shard_index.scan(os.fspath(copy), base_name(self.address)).keys
        assert keys is not None  # a scan gives keys
        return keys

    @property
    def indexed(self) -> ShardIndex:
        """The index of a shard that can be used."""
        assert self.index is not None
        return self.index


def look_at(addresses: list[str], access: Access) -> list[Shard]:
    """Determines sizes and tags. If a shard does not exist, its `fault` is a FileNotFoundError."""
    shards = []
    for address in addresses:
        shard = Shard(address)
        if not is_remote(address):
            if os.path.isfile(address):
                shard.size = os.path.getsize(address)
            else:
                shard.fault = FileNotFoundError(f"{shard.name}: there is no such file")
        shards.append(shard)
    remote = [shard for shard in shards if is_remote(shard.address)]
    _threads(partial(_ask, access=access), remote, "asking for", _ASKED_AT_ONCE)
    return shards


def index_all(shards: list[Shard], access: Access) -> None:
    """Sets `index` or `fault` of each shard that has no fault yet."""
    local, stale = [shard for shard in shards if shard.fault is None and shard.stat is None], []
    for shard in local:
        try:
            shard.stamp = index_file.local_stamp(shard.address)
            shard.index = index_file.load(paths_of(shard, access), shard.stamp)
        except OSError as error:
            shard.fault = _as_shard_error(error, shard.address)
            continue
        if shard.index is None:
            stale.append(shard)
    _scan(stale, access)
    remote = [shard for shard in shards if shard.fault is None and shard.stat is not None]
    _threads(partial(_index_remote, access=access), remote, "indexing", _FETCHED_AT_ONCE)


def paths_of(shard: Shard, access: Access):
    if shard.stat is None:
        return index_file.local_paths(shard.address, access)
    return (index_file.cached_path(shard.address, access),)


def _scan(shards: list[Shard], access: Access) -> None:
    by_address = {shard.address: shard for shard in shards}
    processes = min(access.workers, len(shards) // _SHARDS_A_PROCESS)
    done = each(_read, [(address, access) for address in by_address], processes)
    for (address, _), outcome in ProgressBar(done, "indexing", len(shards), **_bar(shards)):
        shard = by_address[address]
        if isinstance(outcome, ShardIndex):
            shard.index = outcome
        elif isinstance(outcome, OSError):
            shard.fault = _as_shard_error(outcome, address)
        else:
            raise outcome


def _read(item: tuple[str, Access]) -> ShardIndex:
    return index_file.make_index(*item)


def _ask(shard: Shard, access: Access) -> None:
    """Sets the stat of a remote shard. If the server does not answer, a copy in the cache is used."""
    try:
        shard.stat = persist(origin_of(shard.address, access).stat, access)
        shard.size = shard.stat.size
    except FileNotFoundError as error:
        shard.fault = error
    except ShardError as error:
        shard.stat = ShardCache(access).known(shard.address)
        if shard.stat is None:
            shard.fault = error
            return
        shard.size = shard.stat.size
        warnings.warn(f"{error}; the copy in {access.folder} is used as it is", stacklevel=2)


def _index_remote(shard: Shard, access: Access) -> None:
    """Loads the index from the cache or from beside the shard; else fetches the shard into the cache and scans it."""
    assert shard.stat is not None
    shard.stamp = index_file.remote_stamp(shard.stat.size, shard.stat.tag or shard.address)
    paths, stamp = paths_of(shard, access), shard.stamp
    shard.index = index_file.load(paths, stamp) or _index_beside(shard, access)
    if shard.index is not None:
        return
    made, name = [], base_name(shard.address)
    try:
        copy = ShardCache(access).fetch(
            shard.address, shard.stat, lambda path: made.append(shard_index.scan(path, name))
        )
        shard.index = made[0] if made else shard_index.scan(os.fspath(copy), name)
        index_file.store(shard.index, paths, stamp)
        shard.size = shard.size or os.path.getsize(copy)
    except OSError as error:
        shard.fault = _as_shard_error(error, shard.address)


def _index_beside(shard: Shard, access: Access) -> ShardIndex | None:
    """`<shard>.index.npz` on the server, if it was made from a shard of this size; times of change do not matter."""
    if shard.address.startswith("pipe:") or shard.size is None or shard.stamp is None or "?" in shard.address:
        return None
    path, *_ = paths_of(shard, access)
    address = f"{shard.address}.index.npz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".beside.", suffix=PARTIAL) as file:
            bounded = Bounded(cast(BinaryIO, file), shard.size + index_file.SPARE, address)
            persist(lambda: origin_of(address, access).download(bounded), access, file.tell)
            file.flush()
            stamp, beside = index_file.remote_stamp(shard.size, ""), [Path(file.name)]
            index = index_file.load(beside, stamp, compare=index_file.SIZE_ONLY)
            if index is not None:
                index.keys = index_file.load_keys(beside, stamp, compare=index_file.SIZE_ONLY)
                index_file.store(index, [path], shard.stamp)
            return index
    except (OSError, ValueError):  # it does not exist, or is not usable
        return None


def _threads(work, shards: list[Shard], said: str, at_once: int) -> None:
    """Calls work(shard) for each shard in threads. ValueErrors, which concern the request, are raised."""
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for _ in ProgressBar(pool.map(work, shards), said, len(shards), **_bar(shards)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _bar(shards: list) -> dict:
    """Arguments of a progress bar, which is shown only for many shards."""
    return {"unit": "shard", "leave": False, "disable": len(shards) < 16 or None}


def _as_shard_error(error: OSError, address: str) -> ShardError:
    """The error as ShardError; raises MachineError if the machine is at fault."""
    refuse_machine_faults(error, address)
    return error if isinstance(error, ShardError) else ShardError(f"{address}: {error.strerror or error}")

"""Tar shards, opened by number: any sample is one read at a known offset."""

import os
from collections import OrderedDict

import numpy as np
from tqdm import tqdm

from a2mim.data import remote
from a2mim.data.dataset import ImageDataset
from a2mim.data.decode import UnreadableImage
from a2mim.data.shard_index import counted_index, samples

MAX_OPEN = 128  # file descriptors


class TarStore:
    """Images inside tar files.

    Args:
        paths: local tar files.
        ends: (shards,) number of samples up to and including each shard.
        offsets, sizes: (N,) of each image, in bytes.
    """

    def __init__(self, paths: list[str], ends: np.ndarray, offsets: np.ndarray, sizes: np.ndarray):
        self._open = OrderedDict()
        self.paths, self.ends, self.offsets, self.sizes = paths, ends, offsets, sizes

    def content(self, i: int) -> bytes:
        shard = int(np.searchsorted(self.ends, i, side="right"))
        data = os.pread(self._descriptor(shard), int(self.sizes[i]), int(self.offsets[i]))
        if len(data) < self.sizes[i]:
            raise UnreadableImage("cut short", f"{len(data)} of {self.sizes[i]} bytes")
        return data

    def will_need(self, ids: np.ndarray) -> None:
        """Asks the system to read these samples ahead, so that a cold disk works while images are decoded."""
        if not hasattr(os, "posix_fadvise"):  # not on a Mac
            return
        for i in ids:
            shard = int(np.searchsorted(self.ends, i, side="right"))
            descriptor = self._descriptor(shard)
            os.posix_fadvise(descriptor, int(self.offsets[i]), int(self.sizes[i]), os.POSIX_FADV_WILLNEED)

    def name(self, i: int) -> str:
        """Looked up in the tar's headers: names are wanted rarely, and would be most of the index."""
        shard = int(np.searchsorted(self.ends, i, side="right"))
        first = self.ends[shard - 1] if shard else 0
        return f"{self.paths[shard]}/{samples(self.paths[shard])[i - first][0]}"

    def _descriptor(self, shard: int) -> int:
        """Positions are given with every read, so forked workers may share what their parent opened."""
        if shard not in self._open:
            if len(self._open) >= MAX_OPEN:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(shard)
        return self._open[shard]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self):
        self.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}


def open_shards(shards: list[str], title: str) -> ImageDataset:
    """Indexes shards (paths and URLs); refuses when any is missing, damaged, named twice, or when none has an image."""
    if not shards:
        raise ValueError("an empty list of shards was given; name at least one")
    refuse_missing(shards)
    if len(set(shards)) < len(shards):
        twice = next(shard for shard in shards if shards.count(shard) > 1)
        raise ValueError(f"the shard {twice!r} is named more than once; its images would be too")
    paths, indices, duplicates = [], [], 0
    for shard in tqdm(shards, "indexing", unit="shard", leave=False, disable=len(shards) < 100 or None):
        paths.append(remote.fetch(shard) if remote.is_remote(shard) else shard)
        index, again = counted_index(paths[-1])
        indices.append(index)
        duplicates += again
    sizes = np.array([len(index) for index in indices], np.int64)
    if not sizes.sum():
        raise ValueError(
            f"no images in {title!r}: a sample is a member such as 000001.jpg, with its label in 000001.cls"
        )
    index = np.concatenate(indices)
    store = TarStore(paths, np.cumsum(sizes), index["offset"].copy(), index["size"].copy())
    names = _class_names(paths[0], index["label"].max())
    return ImageDataset(store, title, index["key"], index["label"], sizes, names, duplicates=duplicates)


def refuse_missing(shards: list[str]) -> None:
    missing = [s for s in shards if not (remote.exists(s) if remote.is_remote(s) else os.path.isfile(s))]
    if missing:
        named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} shards missing: {named}; give a folder, tar shards, a URL or 'photos'"
        )


def _class_names(path: str, greatest_label: int) -> list[str] | None:
    """From classes.txt beside the shards, a name per line; None when it is not there or too short to be about them."""
    listed = os.path.join(os.path.dirname(path), "classes.txt")
    if not os.path.isfile(listed):
        return None
    with open(listed, encoding="utf-8") as file:
        names = file.read().splitlines()
    return names if 0 <= greatest_label < len(names) else None

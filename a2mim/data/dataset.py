"""Indexed images: the one type that loaders read, whatever the images are stored in.

A store knows where images lie and answers two questions, `content(i)` and `name(i)`; what the bytes mean is decided
here. It must survive pickling (spawned workers) and forking. Everything that the order and the randomness depend on
stands here, as arrays.
"""

import functools
import hashlib
from typing import Protocol

import numpy as np

from a2mim.data.decode import decode


class Store(Protocol):
    """Where the images are. A store may also have `will_need(ids)`, told before ids (N,) int64 are asked for."""

    def content(self, i: int) -> bytes | np.ndarray:
        """The encoded image, or its pixels (H, W, C) where these are what is stored; raises UnreadableImage when this
        one image is at fault.
        """

    def name(self, i: int) -> str:
        """What a person would look for: a path, or shard and member."""


class ImageDataset:
    """Images by number.

    Args:
        store: where the pixels are.
        title: the source, as the user named it.
        keys: (N,) uint64, one per image, independent of where the data lies: what random crops are keyed by.
        labels: (N,) int64, -1 = none.
        shard_sizes: images in each shard, in order; a folder is one shard.
        class_names: name of label 0, 1, ..., or None.
        splits: the splits that the source has; empty when there is but one set, returned for every split.
        duplicates: images left out because an earlier one has their key.
    """

    def __init__(self, store: Store, title: str, keys, labels, shard_sizes, class_names=None, splits=(), duplicates=0):
        self.store, self.title = store, title
        self.keys = np.asarray(keys, np.uint64)
        self.labels = np.asarray(labels, np.int64)
        self.shard_sizes = np.asarray(shard_sizes, np.int64)
        self.class_names, self.splits, self.duplicates = class_names, tuple(splits), int(duplicates)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, i: int, notes: list[str] | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB; raises UnreadableImage; what is worth counting is appended to notes."""
        content = self.store.content(int(i))
        return content if isinstance(content, np.ndarray) else decode(content, notes)

    def will_need(self, ids: np.ndarray) -> None:
        """Lets the store read ahead, where it can."""
        if hasattr(self.store, "will_need"):
            self.store.will_need(ids)

    def name(self, i: int) -> str:
        return self.store.name(int(i))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when images come, go, change their order, name, shard or label; not when the data moves."""
        columns = (self.shard_sizes, self.keys, self.labels)
        return hashlib.blake2b(b"".join(column.tobytes() for column in columns), digest_size=8).hexdigest()

    def describe(self) -> str:
        """One line for the log."""
        classes = len(np.unique(self.labels[self.labels >= 0]))
        labelled = f"{classes} classes" if classes else "no labels"
        shards = f" in {len(self.shard_sizes)} shards" if len(self.shard_sizes) > 1 else ""
        left_out = f", {self.duplicates} with a key that was taken left out" if self.duplicates else ""
        return f"{self.title}: {len(self):,} images{shards}, {labelled}{left_out}"

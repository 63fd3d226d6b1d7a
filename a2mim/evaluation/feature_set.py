"""The features of a set's readable images, memory-mapped from the cache, with their labels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from a2mim.evaluation.cache_entry import FULL, SHOWN, SIGNATURE, Entry
from a2mim.evaluation.probe import Labelled
from a2mim.files import reserve, telling_full_disk

_ROWS = 2**15  # copied at once
_COPIED = 2**28  # bytes copied at once: the cells of an image may be a megabyte


@dataclass
class FeatureSet:
    """The parts of a set's readable images.

    Args:
        entry: whole.
        labels: (N,) of the whole set.
    """

    entry: Entry
    all_labels: np.ndarray

    def __post_init__(self):
        self.rows = np.flatnonzero(self.entry.part(SHOWN)[:, 0])  # readable images, by their number in the set
        self.labels = torch.from_numpy(np.asarray(self.all_labels, np.int64)[self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def features(self, *parts: str) -> Tensor:
        """(n, D) float32 of the readable images, parts joined; on disk, also where unreadable images are left out."""
        whole = len(self.rows) == len(self.all_labels)
        if len(parts) == 1 and whole:
            return torch.from_numpy(self.entry.part(parts[0]))
        arrays = [self.entry.part(part) for part in parts]
        width = sum(array.shape[1] for array in arrays)
        with (
            telling_full_disk(self.entry.folder, FULL),
            tempfile.TemporaryFile(dir=self.entry.folder) as file,
        ):
            reserve(file, len(self.rows) * width * arrays[0].itemsize)
            joined = np.memmap(file, arrays[0].dtype, "r+", shape=(len(self.rows), width))  # outlives `file`
        step = max(1, min(_ROWS, _COPIED // (width * arrays[0].itemsize)))
        for start in range(0, len(self.rows), step):
            rows = self.rows[start : start + step]
            joined[start : start + len(rows)] = np.concatenate([array[rows] for array in arrays], axis=1)
        return torch.from_numpy(joined)

    def labelled(self, parts: Iterable[str]) -> Labelled:
        return Labelled({part: self.features(part) for part in parts}, self.labels)

    def signatures(self) -> np.ndarray:
        return np.asarray(self.entry.part(SIGNATURE))[self.rows]

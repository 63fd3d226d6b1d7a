"""What travels between a loader and its workers, and what a loader hands to its user."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Fault = tuple[str, str]  # the reason, by which faults are counted, and a sentence with the image's name


@dataclass(frozen=True)
class Request:
    """A batch that a worker is asked for.

    Args:
        epoch: number of the epoch, from 0; crops depend on it.
        ids: (B,) int64, the images to show.
        slot: place in the ring of shared memory that takes the images.
        ahead: (A,) int64, images that the same worker will be asked for next.
    """

    epoch: int
    ids: np.ndarray
    slot: int = 0
    ahead: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class WorkerBatch:
    """A worker's answer. It holds fewer images than were asked for where unreadable ones are left out.

    Args:
        images: (B, C, H, W) uint8 or uint16; None where they lie in the ring.
        slot: their place in the ring; the first `len(ids)` images there belong to this batch.
        labels, ids: (B,) int64, of the images that are shown.
        faults: what was wrong with images.
        error: ends the run. It is handed over, because an exception that is raised in a worker arrives as a page of
            traceback.
    """

    images: Tensor | None = None
    slot: int = 0
    labels: np.ndarray | None = None
    ids: np.ndarray | None = None
    faults: tuple[Fault, ...] = ()
    error: Exception | None = None

    def pin_memory(self, device=None) -> "WorkerBatch":
        """What torch's DataLoader calls to move the images into memory that a GPU copies from without waiting."""
        return self if self.images is None else replace(self, images=self.images.pin_memory())


@dataclass(frozen=True, eq=False)
class Batch(Mapping[str, Tensor]):
    """One finished batch: `batch.images` and `batch["images"]` are the same.

    Args:
        images: (B, C, H, W) uint8 or uint16.
        labels: (B,) int64, -1 for none.
        ids: (B,) int64, the images' numbers in the data set.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    @classmethod
    def of(cls, made: WorkerBatch) -> "Batch":
        """The batch of a worker's answer that has its images with it."""
        return cls(made.images, torch.from_numpy(made.labels), torch.from_numpy(made.ids))

    def __getitem__(self, name: str) -> Any:
        if name not in self._names():
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        """The number of names, as for any mapping; the number of images is `len(batch.ids)`."""
        return len(self._names())

    @classmethod
    def _names(cls) -> list[str]:
        return [each.name for each in fields(cls)]

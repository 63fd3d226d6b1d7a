"""Records that pass between a loader and its workers, and the batches that a loader yields."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Fault = tuple[str, str]  # the reason, for counting, and a sentence with the image's name


@dataclass(frozen=True)
class Request:
    """A batch that a worker is to make.

    Args:
        epoch: number of the epoch, from 0; crops depend on it.
        ids: (B,) int64, the images.
        slot: index in the ring of shared memory where the images are written.
        ahead: (A,) int64, images of the same worker's next request.
    """

    epoch: int
    ids: np.ndarray
    slot: int = 0
    ahead: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class WorkerBatch:
    """A worker's answer. It holds fewer images than requested if unreadable images were left out.

    Args:
        images: (B, C, H, W) uint8 or uint16; None if they are in the ring.
        slot: index in the ring; the first `len(ids)` images there belong to this batch.
        labels, ids: (B,) int64, of the images that are present.
        faults: faults of images.
        error: ends the run. It is passed as a value, because an exception raised in a worker arrives with a page of
            traceback.
    """

    images: Tensor | None = None
    slot: int = 0
    labels: np.ndarray | None = None
    ids: np.ndarray | None = None
    faults: tuple[Fault, ...] = ()
    error: Exception | None = None

    def pin_memory(self, device=None) -> "WorkerBatch":
        """Moves the images to pinned memory, from which a GPU copies without waiting. torch's DataLoader calls it."""
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
        """The batch of a worker's answer that contains its images."""
        assert made.images is not None and made.labels is not None and made.ids is not None  # errors are raised before
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

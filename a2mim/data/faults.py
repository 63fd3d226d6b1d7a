"""Counts images that could not be read, or only in part, by reason. Too many of them end the run."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping

from a2mim.data.decode import LENIENT, REDUCED
from a2mim.data.records import Batch, Fault, WorkerBatch

SHOWN = (LENIENT, REDUCED)  # counted with the faults, but the image is used
NAMED = 3  # images that an error names
FEW_FAULTS, FAULT_SHARE = 10, 0.01  # a run ends when more images are unreadable than this number and this share


class UnreadableData(ValueError):
    """Too many images cannot be read."""


class Faults(Counter):
    """Counts of damaged images by reason; `names` holds the first few unreadable images, with the reason."""

    def __init__(self, counts=()):
        super().__init__(counts)
        self.names: list[str] = []

    @property
    def unreadable(self) -> dict[str, int]:
        """Counts without images that were used all the same."""
        return {reason: count for reason, count in self.items() if reason not in SHOWN}

    def add(self, faults: Iterable[Fault]) -> None:
        """Counts faults and keeps the first names."""
        faults = list(faults)
        self.update(reason for reason, _ in faults)
        self.names += [sentence for reason, sentence in faults if reason not in SHOWN][: NAMED - len(self.names)]

    def receive(self, made: WorkerBatch, images: int) -> Batch:
        """Counts the faults of a worker's answer and returns its batch.

        Args:
            images: number of images handed out so far, this batch included.

        Raises:
            UnreadableData: too many of these images are unreadable. An error from the worker is raised unchanged.
        """
        self.add(made.faults)
        if made.error is not None:
            raise copy.copy(made.error)  # a copy: a cycle with this frame would delay the workers' shutdown by 5 s
        if made.faults:
            self._check(images)
        return Batch.of(made)

    def take_over(self, counts: Mapping[str, int], names: Iterable[str], images: int) -> None:
        """Counts faults that another process has found; `images` and the error are as in `receive`."""
        if counts:
            self.update(counts)
            self.names += list(names)[: NAMED - len(self.names)]
            self._check(images)

    def _check(self, images: int) -> None:
        if sum(self.unreadable.values()) > max(FEW_FAULTS, FAULT_SHARE * images):
            counts = ", ".join(f"{count} {reason}" for reason, count in self.unreadable.items())
            raise UnreadableData(
                f"too many of {images} images cannot be read ({counts}), first: {'; '.join(self.names)}"
            )

"""Images that could not be read, or only in part: counted by reason, and too many of them end the run."""

import copy
from collections import Counter
from collections.abc import Iterable

from a2mim.data.decode import LENIENT, REDUCED
from a2mim.data.records import Batch, Fault, WorkerBatch

SHOWN = (LENIENT, REDUCED)  # counted with the faults, but the image is there
NAMED = 3  # images that are named in an error
FEW_FAULTS, FAULT_SHARE = 10, 0.01  # more unreadable images than both, of those handed out, end the run


class UnreadableData(ValueError):
    """Too many images cannot be read."""


class Faults(Counter):
    """How many images were damaged, by reason; `names` has the first few that could not be read, and why."""

    def __init__(self, counts=()):
        super().__init__(counts)
        self.names: list[str] = []

    @property
    def unreadable(self) -> dict[str, int]:
        """Without those that were shown all the same."""
        return {reason: count for reason, count in self.items() if reason not in SHOWN}

    def add(self, faults: Iterable[Fault]) -> None:
        """Counts faults and keeps the names of the first."""
        faults = list(faults)
        self.update(reason for reason, _ in faults)
        self.names += [sentence for reason, sentence in faults if reason not in SHOWN][: NAMED - len(self.names)]

    def receive(self, made: WorkerBatch, images: int) -> Batch:
        """The batch of a worker's answer, its faults counted.

        Args:
            images: how many have been handed out so far, this batch counted.

        Raises:
            UnreadableData: there are too many unreadable ones among them; or whatever error the worker hands over.
        """
        self.add(made.faults)
        if made.error is not None:
            raise copy.copy(made.error)  # not itself: in a cycle with this frame, workers end 5 s later
        if made.faults and sum(self.unreadable.values()) > max(FEW_FAULTS, FAULT_SHARE * images):
            counts = ", ".join(f"{count} {reason}" for reason, count in self.unreadable.items())
            raise UnreadableData(
                f"too many of {images} images cannot be read ({counts}), first: {'; '.join(self.names)}"
            )
        return Batch.of(made)

"""Batches in an order that can be taken up anywhere: TrainLoader for training, EvalLoader for features.

Workers change how fast batches come and nothing else: ids are sent out, finished batches come back, and every number in
them is a function of the ids, the epoch and the seed. A position is therefore one integer.
"""

from collections.abc import Iterator

import numpy as np

from a2mim.data.batches import Batches, CenterCrops
from a2mim.data.crops import check_interpolation, height_and_width
from a2mim.data.dataset import ImageDataset
from a2mim.data.faults import Faults, UnreadableData
from a2mim.data.options import LoaderOptions
from a2mim.data.plan import VERSION, Plan
from a2mim.data.progress import Progress
from a2mim.data.records import Batch, Request
from a2mim.data.repeated import repeated
from a2mim.data.workers import Workers


class TrainLoader(Progress):
    """Random crops, shuffled; can be resumed at any batch.

    Args:
        dataset: from open_dataset.
        img_size, global_batch_size: see `LoaderOptions`.
        options: further fields of `LoaderOptions`.

    Iterating goes from the current position to the end of its epoch. `position` counts the batches handed out since
    the first epoch. Each batch is a `Batch`.
    """

    def __init__(self, dataset: ImageDataset, img_size, global_batch_size: int, **options):
        chosen = LoaderOptions(img_size, global_batch_size, **options)
        self.dataset = dataset
        self.plan = Plan(dataset.shard_sizes, global_batch_size, chosen.seed, chosen.lanes, chosen.block)
        self.repeats = chosen.repeats
        self.rank, self.world_size = chosen.rank, chosen.world_size
        self.faults = Faults()
        self.plan.check_world(chosen.world_size)
        self.crop = chosen.crops()
        shown = repeated(dataset, chosen.repeats) if chosen.repeats > 1 else dataset
        how = chosen.num_workers, chosen.prefetch, chosen.start_method, chosen.pin_memory
        self._workers = Workers(Batches(shown, self.crop), chosen.batch_size, *how)

    def __len__(self) -> int:
        """Steps of a whole epoch, wherever the position is."""
        return self.plan.steps

    @property
    def left_out(self) -> int:
        """Images that an epoch does not show, because they fill no batch; others in each epoch."""
        return self.plan.left_out

    def __iter__(self) -> Iterator[Batch]:
        epoch, step = self._place()
        share = self.rank, self.world_size, self.repeats
        for made in self._workers.run(_planned(self.plan, epoch, range(step, len(self)), share)):
            self.position += 1  # before the batch is used: a state saved during its step is the state after it
            rank_images = self.position * (self.plan.global_batch_size // self.world_size)
            yield self.faults.receive(made, rank_images)

    def state_dict(self) -> dict:
        """Plain values: the position, and what must be the same for it to mean the same."""
        return {**self._identity(), **self._position(), "faults": dict(self.faults)}

    def load_state_dict(self, state: dict, next_epoch: bool = False) -> list[str]:
        """Sets the position of a saved state; returns what changed, in words. Reads no data.

        Args:
            next_epoch: where data, batch or plan are others than when the state was saved, begin the next epoch with
                what is now; its positions count on from the state's. Without this they are refused by ValueError.
        """
        said = self._take_up(state, next_epoch)
        self.faults = Faults(state["faults"])
        return said

    def _identity(self) -> dict:
        return {
            "plan": VERSION,
            "data": self.dataset.fingerprint,
            "global_batch_size": self.plan.global_batch_size,
            "seed": self.plan.seed,
            "lanes": self.plan.lanes,
            "block": self.plan.block,
            "repeats": self.repeats,
        }


class EvalLoader:
    """The whole set once, in order, central crops; images that cannot be read are left out and counted in `faults`.

    Args:
        dataset: from open_dataset.
        img_size: side of the crop in pixels, or (H, W).
        resize: short side before the crop, in pixels; None: no larger than the crop.
        interpolation: "bilinear" or "bicubic", antialiased.
        batch_size: images per batch; the last may have fewer, as has one with unreadable images.
        num_workers, start_method, pin_memory: see data/workers.py.
        indices: the images to show, in this order; None: all.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        img_size=224,
        resize: int | None = 256,
        interpolation: str = "bicubic",
        batch_size: int = 64,
        num_workers: int = 0,
        indices=None,
        start_method: str | None = None,
        pin_memory: bool = False,
    ):
        size = height_and_width(img_size)
        check_interpolation(interpolation)
        short_side = max(size) if resize is None else resize
        if short_side < max(size):
            raise ValueError(f"resize={resize} is smaller than img_size={img_size}; the crop would leave the image")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.dataset, self.batch_size = dataset, batch_size
        self.indices = np.arange(len(dataset)) if indices is None else np.asarray(indices, np.int64)
        self.faults = Faults()
        crop = CenterCrops(size, short_side, interpolation)
        size = min(batch_size, max(1, len(self.indices)))
        self._workers = Workers(Batches(dataset, crop), size, num_workers, 2, start_method, pin_memory)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self.faults = Faults()
        parts = np.split(self.indices, range(self.batch_size, len(self.indices), self.batch_size))
        shown = 0
        for made in self._workers.run(Request(0, part) for part in parts):
            batch = self.faults.receive(made, len(self.indices))
            shown += len(batch.ids)
            if len(batch.ids):
                yield batch
        if self.faults and not shown:
            raise UnreadableData(
                f"none of {len(self.indices)} images can be read, first: {'; '.join(self.faults.names)}"
            )


def _planned(plan: Plan, epoch: int, steps: range, share: tuple) -> Iterator[Request]:
    """Not a method: the workers hold it, and a reference cycle with the loader would delay the shutdown of each worker
    by 5 s.
    """
    for step in steps:
        yield Request(epoch, plan.batch(epoch, step, *share))

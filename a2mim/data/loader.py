"""Batches in an order that can be resumed anywhere: TrainLoader for training, EvalLoader for features.

Workers change the speed and nothing else: a request holds ids, and every number in a batch is a function of the ids,
the epoch and the seed. A position is therefore one integer.
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
    """Random crops in shuffled order; can be resumed at any batch.

    Args:
        dataset: from open_dataset.
        img_size, global_batch_size: see `LoaderOptions`.
        options: further fields of `LoaderOptions`.

    An iterator yields each `Batch` from the current position to the end of the epoch. `position` is the number of
    batches yielded since epoch 0.
    """

    def __init__(self, dataset: ImageDataset, img_size, global_batch_size: int, **options):
        chosen = LoaderOptions(img_size, global_batch_size, **options)
        self.dataset = dataset
        self.plan = Plan(dataset.shard_sizes, global_batch_size, chosen.seed, chosen.lanes, chosen.block)
        self.repeats, self.views = chosen.repeats, chosen.views
        self.rank, self.world_size = chosen.rank, chosen.world_size
        self.faults = Faults()
        self.plan.check_world(chosen.world_size)
        self.crop = chosen.crops()
        copies = chosen.repeats * chosen.views
        shown = repeated(dataset, copies) if copies > 1 else dataset
        how = chosen.num_workers, chosen.prefetch, chosen.start_method, chosen.pin_memory
        self._workers = Workers(Batches(shown, self.crop), chosen.batch_size, *how)

    def __len__(self) -> int:
        """Steps in a whole epoch, whatever the position is."""
        return self.plan.steps

    @property
    def left_out(self) -> int:
        """Images that an epoch leaves out because they do not fill a batch; each epoch leaves out others."""
        return self.plan.left_out

    def __iter__(self) -> Iterator[Batch]:
        epoch, step = self._place()
        share = self.rank, self.world_size, self.repeats, self.views
        for made in self._workers.run(_planned(self.plan, epoch, range(step, len(self)), share)):
            self.position += 1  # before the step: a state saved during the step is the state after it
            rank_images = self.position * (self.plan.global_batch_size // self.world_size) * self.views
            yield self.faults.receive(made, rank_images)

    def share(self, epoch: int, rank: int, size: int) -> Iterator[Batch]:
        """Every `size`-th batch of a whole epoch, from the `rank`-th on; the position stays as it is."""
        steps = range(rank, len(self), size)
        requests = _planned(self.plan, epoch, steps, (self.rank, self.world_size, self.repeats, self.views))
        for step, made in zip(steps, self._workers.run(requests), strict=True):
            yield self.faults.receive(made, self.images_until(epoch, step + 1))

    def images_until(self, epoch: int, step: int) -> int:
        """Images that were handed out when an epoch's first `step` batches are done."""
        return (epoch * len(self) + step) * (self.plan.global_batch_size // self.world_size) * self.views

    def state_dict(self) -> dict:
        """Plain values: the position, and the settings that a position depends on."""
        return {**self._identity(), **self._position(), "faults": dict(self.faults)}

    def load_state_dict(self, state: dict, next_epoch: bool = False) -> list[str]:
        """Restores the position of a saved state without reading data. Returns the changes, as sentences.

        Args:
            next_epoch: if data, batch size or plan changed since the state was saved, start the next epoch with the new
                ones; positions count on from the state's. False: a change raises ValueError.
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
            "views": self.views,
        }


class EvalLoader:
    """The whole set once, in order, as centre crops. Unreadable images are left out and counted in `faults`.

    Args:
        dataset: from open_dataset.
        img_size: side of the crop in pixels, or (H, W).
        resize: short side before a square crop, in pixels; for another shape, what the crop's longer side would be
            without a margin (`center_crop`). None: the longer side of the crop, so no margin.
        interpolation: "bilinear" or "bicubic", antialiased.
        batch_size: images per batch. The last batch, and a batch with unreadable images, may have fewer.
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
        margin_side = max(size) if resize is None else resize
        if margin_side < max(size):
            raise ValueError(f"resize={resize} is smaller than img_size={img_size}; the crop would leave the image")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.dataset, self.batch_size = dataset, batch_size
        self.indices = np.arange(len(dataset)) if indices is None else np.asarray(indices, np.int64)
        self.faults = Faults()
        crop = CenterCrops(size, margin_side, interpolation)
        images_at_once = min(batch_size, max(1, len(self.indices)))
        self._workers = Workers(Batches(dataset, crop), images_at_once, num_workers, 2, start_method, pin_memory)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        shown = 0
        for batch in self.share(0, 1):
            shown += len(batch.ids)
            if len(batch.ids):
                yield batch
        self.check_shown(shown)

    def share(self, rank: int, size: int) -> Iterator[Batch]:
        """Every `size`-th batch from the `rank`-th on; a batch without a readable image is empty."""
        self.faults = Faults()
        parts = np.split(self.indices, range(self.batch_size, len(self.indices), self.batch_size))
        for made in self._workers.run(Request(0, part) for part in parts[rank::size]):
            yield self.faults.receive(made, len(self.indices))

    def check_shown(self, shown: int) -> None:
        """Raises UnreadableData if no image of the whole pass could be read."""
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

"""Batches in an order that can be taken up anywhere: TrainLoader for training, EvalLoader for features.

Workers change how fast batches come and nothing else: ids are sent out, finished batches come back, and every number in
them is a function of the ids, the epoch and the seed. A position is therefore one integer.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch

from a2mim.data.batches import Batches, CenterCrops, RandomCrops, UnreadableData
from a2mim.data.crops import INTERPOLATIONS
from a2mim.data.dataset import ImageDataset
from a2mim.data.decode import LENIENT, REDUCED
from a2mim.data.plan import VERSION, Plan
from a2mim.data.progress import Progress
from a2mim.data.repeated import repeated
from a2mim.data.transforms import Transforms
from a2mim.data.workers import Workers

SHOWN = (LENIENT, REDUCED)  # counted with the faults, but the image is there
FEW_FAULTS, FAULT_SHARE = 10, 0.01  # more than both unreadable images among those handed out end the run


class TrainLoader(Progress):
    """Random crops, shuffled, for ever resumable.

    Args:
        dataset: from open_dataset.
        img_size: side of a crop in pixels, or (H, W).
        global_batch_size: images per step over all processes; a batch here holds global_batch_size / world_size.
        scale: least and greatest share of the image's area in a crop.
        ratio: least and greatest width / height of a crop.
        hflip: chance of a left-right flip, in [0, 1].
        interpolation: "bilinear" or "bicubic", antialiased.
        transforms: see data/transforms.py; applied to the whole image before the crop.
        augment: of the finished crop, called with it and a seed; see data/augment.py.
        repeats: copies of an image in a batch, each cropped anew; see data/repeated.py.
        seed: of order and crops.
        rank, world_size: this process and how many there are.
        num_workers: processes that prepare batches; 0: this one. Does not change the batches.
        lanes, block: how the order is shuffled, see data/plan.py.
        prefetch, start_method, pin_memory: see data/workers.py.

    Iterating goes from the current position to the end of its epoch. `position` counts the batches handed out since
    the first epoch. Batches: images (B, C, H, W) uint8 or uint16, labels (B,) int64, ids (B,) int64.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        img_size,
        global_batch_size: int,
        scale=(0.67, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip: float = 0.5,
        interpolation: str = "bilinear",
        transforms=(),
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        lanes: int = 64,
        block: int | None = None,
        prefetch: int = 2,
        start_method: str | None = None,
        pin_memory: bool = False,
        augment=None,
        repeats: int = 1,
    ):
        _check_range("scale", scale, 1.0)
        _check_range("ratio", ratio, float("inf"))
        self.dataset = dataset
        self.plan = Plan(dataset.shard_sizes, global_batch_size, seed, lanes, block)
        self.repeats = repeats
        self.rank, self.world_size = rank, world_size
        self.faults = Faults()
        self.plan.check_world(world_size)
        size, interpolation = _size(img_size), _interpolation(interpolation)
        crop = size, tuple(scale), tuple(ratio), hflip, interpolation, Transforms(transforms), seed, augment
        self.crop = RandomCrops(*crop)
        shown = repeated(dataset, repeats) if repeats > 1 else dataset
        batches, size = Batches(shown, self.crop), global_batch_size // world_size
        self._workers = Workers(batches, size, num_workers, prefetch, start_method, pin_memory)

    def __len__(self) -> int:
        """Steps of a whole epoch, wherever the position is."""
        return self.plan.steps

    @property
    def left_out(self) -> int:
        """Images that an epoch does not show, because they fill no batch; others in each epoch."""
        return self.plan.left_out

    def __iter__(self) -> Iterator[dict]:
        epoch, step = self._place()
        share = self.rank, self.world_size, self.repeats
        for batch in self._workers.run(_planned(self.plan, epoch, range(step, len(self)), share)):
            self.position += 1  # before the batch is used: a state saved during its step is the state after it
            rank_images = self.position * (self.plan.global_batch_size // self.world_size)
            yield unpack(batch, self.faults, rank_images)

    def state_dict(self) -> dict:
        """Plain values: the position, and what must be the same for it to mean the same."""
        return {**self._identity(), **self._position(), "faults": dict(self.faults)}

    def load_state_dict(self, state: dict, next_epoch: bool = False) -> list[str]:
        """Takes up the position; returns what changed, in words. Costs nothing, whatever the position.

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
        size = _size(img_size)
        short_side = max(size) if resize is None else resize
        if short_side < max(size):
            raise ValueError(f"resize={resize} is smaller than img_size={img_size}; the crop would leave the image")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.dataset, self.batch_size = dataset, batch_size
        self.indices = np.arange(len(dataset)) if indices is None else np.asarray(indices, np.int64)
        self.faults = Faults()
        crop = CenterCrops(size, short_side, _interpolation(interpolation))
        size = min(batch_size, max(1, len(self.indices)))
        self._workers = Workers(Batches(dataset, crop), size, num_workers, 2, start_method, pin_memory)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[dict]:
        self.faults = Faults()
        parts = np.split(self.indices, range(self.batch_size, len(self.indices), self.batch_size))
        shown = 0
        for batch in self._workers.run((0, part) for part in parts):
            batch = unpack(batch, self.faults, len(self.indices))
            shown += len(batch["ids"])
            if len(batch["ids"]):
                yield batch
        if self.faults and not shown:
            raise UnreadableData(
                f"none of {len(self.indices)} images can be read, first: {'; '.join(self.faults.names)}"
            )


def _planned(plan: Plan, epoch: int, steps: range, share: tuple) -> Iterator[tuple[int, np.ndarray]]:
    """No method of the loader: the workers hold this, and in a cycle with the loader they would end in no good order,
    five seconds each.
    """
    for step in steps:
        yield epoch, plan.batch(epoch, step, *share)


class Faults(Counter):
    """How many images were damaged, by reason; `names` has the first few that could not be read, and why."""

    def __init__(self, counts=()):
        super().__init__(counts)
        self.names = []

    @property
    def unreadable(self) -> dict[str, int]:
        """Without those that were shown all the same."""
        return {reason: count for reason, count in self.items() if reason not in SHOWN}

    def add(self, faults: list[tuple[str, str]]) -> None:
        self.update(reason for reason, _ in faults)
        self.names += [sentence for reason, sentence in faults if reason not in SHOWN][: 3 - len(self.names)]


def unpack(batch: dict, faults: Faults, images: int) -> dict:
    """Tensors throughout; counts the faults of a batch, raises when it carries an error or when there are too many for
    `images` images.
    """
    new = batch.pop("faults")
    faults.add(new)
    error = batch.pop("error", None)
    if error is not None:
        try:
            raise error
        finally:
            del error  # kept here it would be in a cycle with this frame, and the workers with it: five seconds each
    if new and sum(faults.unreadable.values()) > max(FEW_FAULTS, FAULT_SHARE * images):
        counts = ", ".join(f"{count} {reason}" for reason, count in faults.unreadable.items())
        raise UnreadableData(f"too many of {images} images cannot be read ({counts}), first: {'; '.join(faults.names)}")
    return {"images": batch["images"], **{key: torch.from_numpy(batch[key]) for key in ("labels", "ids")}}


def _size(img_size) -> tuple[int, int]:
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"img_size={img_size} must be a positive number of pixels, or (height, width)")
    return size


def _interpolation(name: str) -> str:
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation={name!r} is unknown; choose {' or '.join(INTERPOLATIONS)}")
    return name


def _check_range(name: str, pair, most: float) -> None:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
        limit = "" if most == float("inf") else f" <= {most:g}"
        raise ValueError(f"{name}={tuple(pair)} must be (least, greatest) with 0 < least <= greatest{limit}")

"""The work of a data worker: it turns the ids of a batch into a finished batch, and keeps no state between batches.

In training, an image that cannot be read is replaced by another one. The choice depends only on (seed, epoch, key,
attempt), so it is the same in every run. In evaluation the image is left out. The fault is reported with the batch.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from a2mim.data import keyed
from a2mim.data.crops import DRAWS, center_crop, random_crop
from a2mim.data.dataset import ImageDataset
from a2mim.data.decode import UnreadableImage
from a2mim.data.errors import MachineError, ShardError
from a2mim.data.faults import UnreadableData
from a2mim.data.records import Fault, Request, WorkerBatch
from a2mim.data.transforms import TransformError, Transforms

MAX_IN_A_ROW = 9  # unreadable images, each the replacement of the one before; then the data set itself is broken


@dataclass
class RandomCrops:
    """Training: transforms on the whole image, RandomResizedCrop, flip; keyed by (seed, epoch, sample).

    Args:
        size: (H, W) in pixels; scale, ratio, hflip, interpolation, augment: see `LoaderOptions`.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    hflip: float
    interpolation: str
    transforms: Transforms
    seed: int
    augment: Callable[[torch.Tensor, int], torch.Tensor] | None = None
    draws = DRAWS + 1  # uniforms per sample; the last one seeds the transforms
    replaces = True  # unreadable images, so that every batch is full

    def __call__(self, pixels: np.ndarray, u: np.ndarray) -> np.ndarray:
        """(H, W, C) image and (draws,) uniforms of the sample -> (C, *size) of the same dtype."""
        seed = int(u[-1] * 2**53)
        pixels = self.transforms(pixels, seed)
        image = random_crop(pixels, u[:DRAWS], self.size, self.scale, self.ratio, self.hflip, self.interpolation)
        if self.augment is None:
            return image
        return self.augment(torch.from_numpy(np.ascontiguousarray(image)), seed + 1).numpy()


@dataclass
class CenterCrops:
    """Evaluation: the central `size` of a resized image; see `center_crop`."""

    size: tuple[int, int]
    margin_side: int
    interpolation: str
    seed: int = 0
    draws = 0
    replaces = False  # each result must belong to its own image

    def __call__(self, pixels: np.ndarray, u: np.ndarray) -> np.ndarray:
        """(H, W, C) -> (C, *size), of the same dtype."""
        return center_crop(pixels, self.size, self.margin_side, self.interpolation)


class Batches(Dataset[WorkerBatch]):
    """A map-style data set whose items are whole batches. The index is a `Request`.

    Args:
        dataset: the images.
        crop: RandomCrops or CenterCrops.

    If `ring`, (slots, B, C, H, W) in shared memory, is set, the images are written into it.
    """

    ring: torch.Tensor | None = None

    def __init__(self, dataset: ImageDataset, crop):
        self.dataset, self.crop = dataset, crop

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: (C, H, W)."""
        return self.dataset.pixel_format.in_chans, *self.crop.size

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if self.dataset.pixel_format.bits == 8 else torch.uint16

    def __getitem__(self, request: Request) -> WorkerBatch:
        """The finished batch, or a batch with the error that ends the run."""
        epoch, ids, slot = request.epoch, request.ids, request.slot
        self.dataset.will_need(request.ahead)
        images = torch.empty((len(ids), *self.shape), dtype=self.dtype) if self.ring is None else self.ring[slot]
        rows = images.numpy()
        faults: list[Fault] = []
        shown: list[int] = []
        uniforms = keyed.uniforms(self.crop.seed, epoch, self.dataset.keys[ids], self.crop.draws, keyed.CROP)
        for i, u in zip(ids, uniforms, strict=True):
            try:
                image, i = self._image(epoch, int(i), u, faults)
            except UnreadableImage:
                continue
            except (UnreadableData, TransformError, ShardError, MachineError) as error:
                return WorkerBatch(faults=tuple(faults), error=copy.copy(error))  # the copy has no traceback
            rows[len(shown)] = image
            shown.append(i)
        seen = np.array(shown, np.int64)
        here = images[: len(seen)] if self.ring is None else None
        return WorkerBatch(here, slot, self.dataset.labels[seen], seen, tuple(faults))

    def _image(self, epoch: int, i: int, u: np.ndarray, faults: list) -> tuple[np.ndarray, int]:
        """The crop and the id of image i. In training, an unreadable image is replaced by a readable one.

        The replacement uses the crop that was drawn for the unreadable image.
        """
        if not self.crop.replaces:
            return self._crop(i, u, faults), i
        key, first = self.dataset.keys[i : i + 1], len(faults)
        for attempt in range(MAX_IN_A_ROW):
            try:
                return self._crop(i, u, faults), i
            except UnreadableImage:
                i = self._replacement(epoch, key, attempt)
        names = "; ".join(sentence for _, sentence in faults[first : first + 3])
        raise UnreadableData(f"{MAX_IN_A_ROW} images in a row cannot be read, first: {names}")

    def _crop(self, i: int, u: np.ndarray, faults: list) -> np.ndarray:
        """The crop of image i. Faults of the image are added to `faults`, also when it raises UnreadableImage."""
        notes: list[str] = []
        try:
            pixels = self.dataset.read(i, notes)
        except UnreadableImage as error:
            faults.append((error.reason, f"{self.dataset.name(i)} ({error})"))
            raise
        faults += [(note, f"{self.dataset.name(i)} ({note})") for note in notes]
        return self.crop(pixels, u)

    def _replacement(self, epoch: int, key: np.ndarray, attempt: int) -> int:
        u = keyed.uniforms(self.crop.seed, epoch, key, attempt + 1, keyed.REPLACEMENT)[0, -1]
        return int(u * len(self.dataset))

"""The arguments that all training loaders share, checked once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from a2mim.data.batches import RandomCrops
from a2mim.data.crops import check_interpolation, height_and_width
from a2mim.data.transforms import Transforms


@dataclass(frozen=True)
class LoaderOptions:
    """Which crops a training loader makes, and how.

    Args:
        img_size: side of a crop in pixels, or (height, width).
        global_batch_size: images in a step over all processes. Each process has global_batch_size / world_size.
        scale: least and greatest share of the image's area in a crop.
        ratio: least and greatest width / height of a crop.
        hflip: probability of a left-right flip, in [0, 1].
        interpolation: "bilinear" or "bicubic", antialiased.
        transforms: see data/transforms.py; applied to the whole image before the crop.
        seed: of the order and the crops.
        rank, world_size: number of this process, and of all processes.
        num_workers: processes that prepare batches; 0: this one. It does not change the batches of an indexed set.
        lanes, block: how the order is shuffled, see data/plan.py.
        prefetch, start_method, pin_memory: see data/workers.py.
        augment: called with the finished crop and a seed; see data/augment.py.
        repeats: copies of each image in a batch, each with its own crop; see data/repeated.py.
        views: crops of each image, side by side in its batch, which then has `views` times as many images.

    Raises:
        ValueError: names the argument and the allowed values.
    """

    img_size: int | tuple[int, int]
    global_batch_size: int
    scale: tuple[float, float] = (0.67, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    interpolation: str = "bilinear"
    transforms: Sequence = ()
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    lanes: int = 64
    block: int | None = None
    prefetch: int = 2
    start_method: str | None = None
    pin_memory: bool = False
    augment: Callable[[torch.Tensor, int], torch.Tensor] | None = None
    repeats: int = 1
    views: int = 1

    def __post_init__(self) -> None:
        height_and_width(self.img_size)
        check_interpolation(self.interpolation)
        _check_range("scale", self.scale, 1.0)
        _check_range("ratio", self.ratio, float("inf"))

    @property
    def batch_size(self) -> int:
        """Crops in a batch of one process."""
        return self.global_batch_size // self.world_size * self.views

    def crops(self) -> RandomCrops:
        """The function that crops one image."""
        return RandomCrops(
            size=height_and_width(self.img_size),
            scale=(self.scale[0], self.scale[1]),
            ratio=(self.ratio[0], self.ratio[1]),
            hflip=self.hflip,
            interpolation=self.interpolation,
            transforms=Transforms(self.transforms),
            seed=self.seed,
            augment=self.augment,
        )


def _check_range(name: str, pair, most: float) -> None:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
        limit = "" if most == float("inf") else f" <= {most:g}"
        raise ValueError(f"{name}={tuple(pair)} must be (least, greatest) with 0 < least <= greatest{limit}")

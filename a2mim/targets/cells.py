"""A teacher's feature maps as one target on the student's cells."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from a2mim.registry import check_size, is_whole

NORMS = ("layer", "instance", "none")


def normalise(features: Tensor, norm: str) -> Tensor:
    """(B, D, h, w) -> float32. "layer": each cell over its channels; "instance": each image and channel over its cells;
    both with the biased variance, eps 1e-5 and no parameters.
    """
    features = features.float()
    if norm == "none":
        return features
    axis = 1 if norm == "layer" else (2, 3)
    variance, mean = torch.var_mean(features, dim=axis, correction=0, keepdim=True)
    return (features - mean) * (variance + 1e-5).rsqrt()


def on_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, D, h, w) on a grid of the same image: finer features are averaged over each cell, coarser ones repeated.

    Nothing is interpolated: that would mix features of visible cells into hidden ones.
    """
    if features.shape[-2:] == grid:
        return features
    if all(have >= want for have, want in zip(features.shape[-2:], grid, strict=True)):
        return F.adaptive_avg_pool2d(features, grid)
    return F.interpolate(features, grid, mode="nearest-exact")


def blend(maps: list[Tensor], grid: tuple[int, int], norm: str) -> Tensor:
    """One target of several maps of one width: each normalised, brought to the grid, averaged, normalised again."""
    moved = len(maps) > 1 or maps[0].shape[-2:] != grid
    brought = [on_grid(normalise(one, norm), grid) for one in maps]
    mean = torch.stack(brought).mean(dim=0) if len(brought) > 1 else brought[0]
    return normalise(mean, norm) if moved else mean


def plain_size(part: str, img_size: Any) -> int | tuple[int, int] | None:
    """A side, or (height, width), in pixels, as plain numbers; None stays. Raises ValueError for anything else."""
    check_size(part, img_size)
    if img_size is None:
        return None
    return int(img_size) if is_whole(img_size) else (int(img_size[0]), int(img_size[1]))


def unsquashed(img_size: int | tuple[int, int], image: tuple[int, int]) -> tuple[int, int]:
    """(H, W) at which a teacher sees an image of (H, W) pixels: img_size itself, or of that shorter side.

    Raises:
        ValueError: the image would not keep its shape.
    """
    short = min(image)
    size = img_size if isinstance(img_size, tuple) else (img_size * image[0] // short, img_size * image[1] // short)
    if size[0] * image[1] != size[1] * image[0] or (not isinstance(img_size, tuple) and min(size) != img_size):
        raise ValueError(
            f"img_size={img_size} of a teacher does not keep the shape of the student's image of {image[0]}x{image[1]}"
            f" pixels; give a shorter side that is a multiple of {short // math.gcd(*image)}"
        )
    return size


def target_grid(size: tuple[int, int], teacher: float, student: float) -> tuple[int, tuple[int, int]]:
    """(stride of the target, pixels of the student's image; size (H, W) at which the teacher sees it).

    A teacher whose cells divide the student's, or are whole multiples of them, sees the image as it is. Any other sees
    it resized, so that both have the same grid (a patch of 14 px at 196 px beside 16 px at 224 px).

    Args:
        size: (H, W) of the student's image, pixels.
        teacher, student: pixels per cell.

    Raises:
        ValueError: no size fits.
    """
    finer, coarser = student / teacher, teacher / student
    divides = all(side % teacher == 0 for side in size)
    if student == int(student) and divides:
        if finer == int(finer):
            return int(teacher), size
        if coarser == int(coarser):
            return int(student), size
    rows, cols = (round(side / student) for side in size)
    if teacher != int(teacher) or rows * student != size[0] or cols * student != size[1] or student != int(student):
        raise ValueError(
            f"a teacher with cells of {teacher:g} px and a student with cells of {student:g} px have no common grid on"
            f" {size[0]}x{size[1]} pixels; choose another img_size or give the target stride= and img_size="
        )
    return int(student), (rows * int(teacher), cols * int(teacher))

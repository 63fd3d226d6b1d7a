"""From a decoded image to a square: keyed random crops for training, the centre for evaluation, in uint8 or uint16."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

TRIES = 10  # torchvision's RandomResizedCrop
DRAWS = 2 * TRIES + 3  # (area, log ratio) per try, then x, y and the flip
INTERPOLATIONS = ("bilinear", "bicubic")


def height_and_width(img_size: int | Sequence[int]) -> tuple[int, int]:
    """One number as both sides, two as height and width, in pixels; ValueError for anything else."""
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"img_size={img_size} must be a positive number of pixels, or (height, width)")
    return size


def check_interpolation(name: str) -> None:
    """ValueError for a name that no crop knows."""
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation={name!r} is unknown; choose {' or '.join(INTERPOLATIONS)}")


def random_box(u: np.ndarray, width: int, height: int, scale, ratio) -> tuple[int, int, int, int]:
    """RandomResizedCrop's box (x, y, width, height) in pixels.

    Args:
        u: (DRAWS,) uniforms; a number is taken by its position, so that the number of tries shifts no later one.
        scale: least and greatest share of the area.
        ratio: least and greatest width / height.

    Source: torchvision.transforms.RandomResizedCrop: ten tries, then the largest centred box within the ratio.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for k in range(TRIES):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * u[2 * k])
        aspect = math.exp(low + (high - low) * u[2 * k + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[2 * TRIES] * (width - w + 1)), int(u[2 * TRIES + 1] * (height - h + 1)), w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


def random_crop(pixels: np.ndarray, u: np.ndarray, size, scale, ratio, hflip: float, interpolation: str) -> np.ndarray:
    """(H, W, C) -> (C, *size), of the same dtype; a view, to be copied to where it is wanted."""
    x, y, w, h = random_box(u, pixels.shape[1], pixels.shape[0], scale, ratio)
    crop = resize(pixels[y : y + h, x : x + w], size, interpolation)
    return crop[..., ::-1] if u[-1] < hflip else crop


def center_crop(pixels: np.ndarray, size, short_side: int, interpolation: str) -> np.ndarray:
    """Short side to `short_side`, then the central `size`: (H, W, C) -> (C, *size), of the same dtype."""
    pixels = _without_far_ends(pixels)
    height, width = pixels.shape[:2]
    if height <= width:
        height, width = short_side, max(short_side, int(short_side * width / height))
    else:
        height, width = max(short_side, int(short_side * height / width)), short_side
    image = resize(pixels, (height, width), interpolation)
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return image[:, top : top + size[0], left : left + size[1]]


def _without_far_ends(pixels: np.ndarray) -> np.ndarray:
    """The middle of a panorama, at most 8:1: the rest would be resized, at any cost in memory, to be cut off."""
    height, width = pixels.shape[:2]
    top, left = max(0, height - 8 * width) // 2, max(0, width - 8 * height) // 2
    return pixels[top : height - top, left : width - left]


def resize(pixels: np.ndarray, size, interpolation: str) -> np.ndarray:
    """Antialiased, as Pillow's: (H, W, C) -> (C, *size), of the same dtype; in uint8 nearly always within 1 of 255 of
    Pillow (8 of 1.4e9 values were 2 away).

    Bicubic of uint8 is left to Pillow, five times slower: its weights overshoot at edges, and what is clipped after the
    first pass depends on which axis that was. torch begins with the rows; Pillow 13 decides by the shape, in a way that
    we could not tell from outside, and then the two differ by up to 31 of 255 (by 1 or 2 where the order is the same).
    torch takes its fast uint8 path only for channels-last memory, which a one-image batch does not tell by itself:
    the strides are spelt out.
    """
    if pixels.dtype == np.uint16:
        return _resize_deep(pixels, size, interpolation)
    if interpolation == "bicubic":
        return _resize_bicubic(pixels, size)
    pixels = np.array(pixels, order="C")  # a copy: torch wants writable, gapless memory
    h, w, c = pixels.shape
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].as_strided((1, c, h, w), (h * w * c, 1, w * c, c))
    return interpolate(image, size=tuple(size), mode=interpolation, antialias=True, align_corners=False)[0].numpy()


def _resize_deep(pixels: np.ndarray, size, interpolation: str) -> np.ndarray:
    """In float32, whose 24 bits hold 16-bit values with room for the weights."""
    image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    resized = interpolate(image, size=tuple(size), mode=interpolation, antialias=True, align_corners=False)[0]
    return resized.round_().clamp_(0, 65535).numpy().astype(np.uint16)


def _resize_bicubic(pixels: np.ndarray, size) -> np.ndarray:
    """Pillow knows RGB and single bands."""
    from PIL import Image

    bands = [pixels] if pixels.shape[2] == 3 else pixels.transpose(2, 0, 1)
    images = [Image.fromarray(np.ascontiguousarray(band)) for band in bands]
    resized = [np.atleast_3d(image.resize((size[1], size[0]), Image.Resampling.BICUBIC)) for image in images]
    return np.concatenate(resized, axis=2).transpose(2, 0, 1)

"""From a decoded image to a crop: keyed random crops for training, centre crops for evaluation; uint8 or uint16."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

TRIES = 10  # torchvision's RandomResizedCrop
DRAWS = 2 * TRIES + 3  # (area, log ratio) per try, then x, y and the flip
INTERPOLATIONS = ("bilinear", "bicubic")


def height_and_width(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) in pixels, from one number or from two; ValueError for anything else."""
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"img_size={img_size} must be a positive number of pixels, or (height, width)")
    return size


def check_interpolation(name: str) -> None:
    """ValueError unless the name is in INTERPOLATIONS."""
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation={name!r} is unknown; choose {' or '.join(INTERPOLATIONS)}")


def random_box(u: np.ndarray, width: int, height: int, scale, ratio) -> tuple[int, int, int, int]:
    """RandomResizedCrop's box (x, y, width, height) in pixels.

    Args:
        u: (DRAWS,) uniforms. Each number has a fixed position, so the number of tries does not shift the later ones.
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
    """(H, W, C) -> (C, *size) of the same dtype. The result is a view; the caller copies it."""
    x, y, w, h = random_box(u, pixels.shape[1], pixels.shape[0], scale, ratio)
    crop = resize(pixels[y : y + h, x : x + w], size, interpolation)
    return crop[..., ::-1] if u[-1] < hflip else crop


def center_crop(pixels: np.ndarray, size, margin_side: int, interpolation: str) -> np.ndarray:
    """The centre of an image, resized: (H, W, C) -> (C, *size), of the same dtype.

    Args:
        size: (H, W) of the crop in pixels.
        margin_side: what the longer side of the crop would be without a margin, in pixels. The image is resized until
            it just covers the crop with its margin. For a square crop that is the image's short side.

    Source: torchvision's Resize and CenterCrop for squares; for other shapes timm's ResizeKeepRatio.
    """
    pixels = _without_far_ends(pixels, size)
    height, width = covering(pixels.shape[0], pixels.shape[1], size, margin_side)
    image = resize(pixels, (height, width), interpolation)
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return image[:, top : top + size[0], left : left + size[1]]


def covering(height: int, width: int, size, margin_side: int) -> tuple[int, int]:
    """Height and width in pixels to which an image is resized before its central `size` is taken."""
    if size[0] == size[1]:
        if height <= width:
            return margin_side, max(margin_side, int(margin_side * width / height))
        return max(margin_side, int(margin_side * height / width)), margin_side
    wanted = [side * margin_side / max(size) for side in size]
    scale = max(wanted[0] / height, wanted[1] / width)
    return max(size[0], round(height * scale)), max(size[1], round(width * scale))


def _without_far_ends(pixels: np.ndarray, size) -> np.ndarray:
    """The middle of an image that is over 8 times longer than its crop. A resize of the ends, which are cut off, could
    fill the memory.
    """
    height, width = pixels.shape[:2]
    tall, wide = max(1.0, size[0] / size[1]), max(1.0, size[1] / size[0])
    top, left = max(0, height - int(8 * tall * width)) // 2, max(0, width - int(8 * wide * height)) // 2
    return pixels[top : height - top, left : width - left]


def resize(pixels: np.ndarray, size, interpolation: str) -> np.ndarray:
    """Resizes with antialiasing, as Pillow does: (H, W, C) -> (C, *size), of the same dtype.

    Bilinear uint8 differs from Pillow by at most 1 of 255 nearly always (8 of 1.4e9 values differed by 2).

    Bicubic uint8 uses Pillow, which is five times slower. Its weights overshoot at edges, and the clipping after the
    first pass depends on which axis comes first. torch always begins with the rows. Pillow 13 chooses by the shape; we
    could not find its rule. Where the order differs, results differ by up to 31 of 255, else by 1 or 2.

    torch uses its fast uint8 path only for channels-last memory. A batch of one image does not show its memory format,
    so the strides are given explicitly.
    """
    if pixels.dtype == np.uint16:
        return _resize_deep(pixels, size, interpolation)
    if interpolation == "bicubic":
        return _resize_bicubic(pixels, size)
    pixels = np.array(pixels, order="C")  # a copy: torch needs writable, contiguous memory
    h, w, c = pixels.shape
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].as_strided((1, c, h, w), (h * w * c, 1, w * c, c))
    return interpolate(image, size=tuple(size), mode=interpolation, antialias=True, align_corners=False)[0].numpy()


def _resize_deep(pixels: np.ndarray, size, interpolation: str) -> np.ndarray:
    """Resizes in float32: its 24 bits hold 16-bit values with enough precision for the weights."""
    image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    resized = interpolate(image, size=tuple(size), mode=interpolation, antialias=True, align_corners=False)[0]
    return resized.round_().clamp_(0, 65535).numpy().astype(np.uint16)


def _resize_bicubic(pixels: np.ndarray, size) -> np.ndarray:
    """Resizes RGB in one call and other images band by band, because Pillow resizes only these two."""
    from PIL import Image

    bands = [pixels] if pixels.shape[2] == 3 else pixels.transpose(2, 0, 1)
    images = [Image.fromarray(np.ascontiguousarray(band)) for band in bands]
    resized = [
        np.atleast_3d(np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))) for image in images
    ]
    return np.concatenate(resized, axis=2).transpose(2, 0, 1)

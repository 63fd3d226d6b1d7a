"""Damage to images that needs no data: hidden cells, shuffled tiles, and nine corruptions, each from a seed.

Corruptions are made for 224 px: their constants are in pixels, so they are far harsher on small images.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

SEVERITIES = range(1, 6)
# constants of severities 1 to 5; from Hendrycks and Dietterich (https://arxiv.org/abs/1903.12261)
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
SHOT = (60, 25, 12, 5, 3)
IMPULSE = (0.03, 0.06, 0.09, 0.17, 0.27)
SPECKLE = (0.15, 0.2, 0.35, 0.45, 0.6)
BLUR = (1, 2, 3, 4, 6)
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)
JPEG = (25, 18, 15, 10, 7)
CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur", "brightness", "contrast"),
    *("pixelate", "jpeg_compression"),
)


def corrupt(image: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 -> the same, damaged.

    Args:
        name: one of CORRUPTIONS.
        severity: 1 to 5.
        seed: of this image; the corruption and the severity are mixed in.

    Raises:
        ValueError: unknown name or severity, or pixels of another type.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption {name!r} is unknown: choose one of {', '.join(CORRUPTIONS)}.")
    if severity not in SEVERITIES:
        raise ValueError(f"severity={severity} was given: it must be 1 to 5.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"corruptions take (H, W, 3) uint8, got {image.shape} {image.dtype}.")
    generator = np.random.default_rng([seed, CORRUPTIONS.index(name)])
    i, x = severity - 1, image.astype(np.float64) / 255
    if name == "jpeg_compression":
        data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG[i]])[1]
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None  # encoded just now
        return np.ascontiguousarray(decoded[:, :, ::-1])
    if name == "pixelate":
        height, width = image.shape[:2]
        small = cv2.resize(
            image, (max(1, int(width * PIXELATE[i])), max(1, int(height * PIXELATE[i]))), interpolation=cv2.INTER_AREA
        )
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    return (_changed(x, name, i, generator).clip(0, 1) * 255).round().astype(np.uint8)


def _changed(x: np.ndarray, name: str, i: int, generator: np.random.Generator) -> np.ndarray:
    """Corruptions of values in [0, 1]."""
    if name == "gaussian_noise":
        return x + generator.normal(size=x.shape, scale=NOISE[i])
    if name == "shot_noise":
        return generator.poisson(x * SHOT[i]) / SHOT[i]
    if name == "impulse_noise":
        where = generator.random(x.shape)
        return np.where(where < IMPULSE[i] / 2, 0.0, np.where(where < IMPULSE[i], 1.0, x))
    if name == "speckle_noise":
        return x + x * generator.normal(size=x.shape, scale=SPECKLE[i])
    if name == "gaussian_blur":
        return cv2.GaussianBlur(x, (0, 0), BLUR[i])
    if name == "brightness":
        hsv = cv2.cvtColor(x.astype(np.float32), cv2.COLOR_RGB2HSV)
        hsv[..., 2] = (hsv[..., 2] + BRIGHTNESS[i]).clip(0, 1)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.float64)
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * CONTRAST[i] + mean


def shuffle_tiles(images: Tensor, tiles: int, seeds) -> Tensor:
    """(B, C, H, W): each image cut into tiles × tiles, which change places by one permutation of its own.

    Args:
        seeds: (B,) int, one an image.

    Raises:
        ValueError: the sides are no multiple of `tiles`.
    """
    height, width = images.shape[2:]
    if tiles < 1 or height % tiles or width % tiles:
        raise ValueError(f"images of {height} x {width} px cannot be cut into {tiles} x {tiles} equal tiles.")
    cut = images.unflatten(3, (tiles, -1)).unflatten(2, (tiles, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    orders = [np.random.default_rng([int(seed), tiles]).permutation(tiles * tiles) for seed in seeds]
    index = torch.from_numpy(np.stack(orders)).to(images.device)
    moved = cut[torch.arange(len(images), device=images.device)[:, None], index]
    return moved.unflatten(1, (tiles, tiles)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def occlude(images: Tensor, ratio: float, grid: tuple[int, int], seeds, salience: Tensor | None = None) -> Tensor:
    """(B, C, H, W) normalised: round(cells · ratio) cells of a grid become 0.

    Args:
        ratio: share of cells, in [0, 1].
        grid: (h, w) cells.
        seeds: (B,) int, one an image: which cells, where `salience` is None.
        salience: (B, h·w): cells with the largest values are hidden first; negate it to hide the smallest first.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio} was given: it must lie between 0 and 1.")
    number = round(grid[0] * grid[1] * ratio)
    if salience is None:
        draws = [np.random.default_rng([int(seed), number]).random(grid[0] * grid[1]) for seed in seeds]
        salience = torch.from_numpy(np.stack(draws)).to(images.device)
    ranks = salience.argsort(dim=1, descending=True).argsort(dim=1)
    hidden = (ranks < number).view(-1, 1, *grid).float().to(images.device)
    return torch.where(interpolate(hidden, size=images.shape[2:], mode="nearest") > 0, 0.0, images)

"""Between stored pixels and what a network sees: uint8 or uint16 travels, float32 is made on the device.

The whole range of either type stands for 0..1: 255 and 65,535 are 1. Data that use a part of it, 12-bit ones say, have
a mean and a deviation in these units as well (`a2mim measure-stats`).
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# the words that timm knows
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "lanczos3", "box", "hamming", "random")


@dataclass(frozen=True)
class Preprocessing:
    """How images are scaled and normalised for one encoder.

    Args:
        mean, std: per channel, in units of the 0..1 range; std is above 0.
        img_size: (H, W) in pixels.
        interpolation: of the resizing, one of INTERPOLATIONS.
        crop_pct: side of the centre crop / short side of the resized image; None: not stated.

    Raises:
        ValueError: a value out of these ranges, or not as many deviations as means.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    img_size: tuple[int, int]
    interpolation: str = "bilinear"
    crop_pct: float | None = None

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            object.__setattr__(self, key, _numbers(key, getattr(self, key)))
        object.__setattr__(self, "img_size", _height_width(self.img_size))
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one of each a channel.")
        if min(self.std) <= 0:
            raise ValueError(f"std is {list(self.std)}: every deviation must be above 0.")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation={reprlib.repr(self.interpolation)} is unknown; choose from {', '.join(INTERPOLATIONS)}."
            )
        if self.crop_pct is not None and not _number("crop_pct", self.crop_pct) > 0:
            raise ValueError(f"crop_pct is {self.crop_pct}: it must be above 0.")

    @classmethod
    def of(
        cls, stated: Preprocessing | Mapping[str, Any], img_size: int | Sequence[int] | None = None
    ) -> Preprocessing:
        """The record of a dictionary such as `to_dict` gives or timm's pretrained_cfg holds; a record stays as it is.

        Args:
            stated: "mean", "std", "interpolation", "img_size" and "crop_pct"; other keys are ignored. What is missing
                becomes ImageNet's mean and deviation, and "bilinear".
            img_size: pixels or (H, W), instead of the stated one.
        """
        if isinstance(stated, Preprocessing):
            return stated if img_size is None else stated.at_size(img_size)
        size = stated.get("img_size") if img_size is None else img_size
        if size is None:
            raise ValueError("the preprocessing states no img_size.")
        return cls(
            stated.get("mean", IMAGENET_MEAN),
            stated.get("std", IMAGENET_STD),
            _height_width(size),
            stated.get("interpolation") or "bilinear",
            stated.get("crop_pct"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON files hold them; `of` reads them back."""
        plain = {
            "mean": list(self.mean),
            "std": list(self.std),
            "img_size": list(self.img_size),
            "interpolation": self.interpolation,
        }
        return plain if self.crop_pct is None else plain | {"crop_pct": self.crop_pct}

    @property
    def channels(self) -> int:
        return len(self.mean)

    def for_channels(self, channels: int) -> Preprocessing:
        """For another number of channels: the average of the means and of the deviations, repeated."""
        if channels == self.channels:
            return self
        mean, std = ((sum(values) / len(values),) * channels for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std)

    def at_size(self, img_size: int | Sequence[int]) -> Preprocessing:
        """For images of another size: pixels or (H, W)."""
        return replace(self, img_size=_height_width(img_size))

    def normalize(self, images: Tensor) -> Tensor:
        """See `normalize`."""
        return normalize(images, self.mean, self.std)


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{key} holds {reprlib.repr(value)}: it must be a finite number.")
    return float(value)


def _numbers(key: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ValueError(f"{key} is {reprlib.repr(values)}: it must be a list of numbers, one a channel.")
    return tuple(_number(key, value) for value in values)


def _height_width(size: Any) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in pair):
        raise ValueError(f"img_size is {reprlib.repr(size)}: it must be a number of pixels, or height and width.")
    return pair[0], pair[1]


def normalize(
    images: Tensor, mean: Sequence[float] | Tensor = IMAGENET_MEAN, std: Sequence[float] | Tensor = IMAGENET_STD
) -> Tensor:
    """(B, C, H, W) uint8 or uint16 -> float32 (images / 255 or 65,535 - mean) / std, on the same device; float images
    are returned as they are.

    Args:
        mean, std: per channel, in units of the 0..1 range; a tensor stays where it is.
    """
    if images.is_floating_point():
        return images
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return images.float().div_(255 if images.dtype == torch.uint8 else 65535).sub_(mean).div_(std)


def denormalize(
    images: Tensor, mean: Sequence[float] | Tensor = IMAGENET_MEAN, std: Sequence[float] | Tensor = IMAGENET_STD
) -> Tensor:
    """(B, C, H, W) normalised float -> uint8, rounded and clipped: the inverse of `normalize` on its range."""
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

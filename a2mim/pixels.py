"""Between stored pixels and what a network sees: uint8 or uint16 travels, float32 is made on the device.

The whole range of either type stands for 0..1: 255 and 65,535 are 1. Data that use a part of it, 12-bit ones say, have
a mean and a deviation in these units as well (`a2mim measure-stats`).
"""

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(images: Tensor, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> Tensor:
    """(B, C, H, W) uint8 or uint16 -> float32 (images / 255 or 65,535 - mean) / std, on the same device; float images
    are returned as they are.

    Args:
        mean, std: per channel, in units of the 0..1 range; a tensor stays where it is.
    """
    if images.is_floating_point():
        return images
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return images.float().div_(255 if images.dtype == torch.uint8 else 65535).sub_(mean).div_(std)


def denormalize(images: Tensor, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> Tensor:
    """(B, C, H, W) normalised float -> uint8, rounded and clipped: the inverse of `normalize` on its range."""
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

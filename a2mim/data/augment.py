"""Photometric augmentations of timm and torchvision, applied to a finished crop. Imported only when a recipe uses them.

The augmentations draw from the global generators of Python, numpy and torch. These are seeded from the sample's key
before each call, so that neither the number of workers nor a resume changes the result.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from a2mim.data.transforms import TransformError, seeded


class Augment:
    """RandAugment and similar policies, or colour jitter.

    Args:
        auto_augment: a policy as timm writes it, e.g. "rand-m9-mstd0.5-inc1" or "original"; "trivial" is torchvision's
            TrivialAugmentWide; "" is none.
        color_jitter: strength of brightness, contrast and saturation, at least 0. As in timm, it is not used together
            with auto_augment.
        img_size: side of the crop in pixels, or (height, width); timm's translations are relative to the shorter side.
        mean: colour of the corners that a rotation leaves empty, per channel, in 0..1.
        interpolation: "bilinear" or "bicubic".

    Raises:
        TransformError: timm does not know the policy.
    """

    def __init__(
        self, auto_augment: str, color_jitter: float, img_size: int | tuple[int, int], mean, interpolation: str
    ):
        from timm.data.auto_augment import posterize as timm_posterize
        from timm.data.transforms_factory import transforms_imagenet_train
        from torchvision.transforms import InterpolationMode, TrivialAugmentWide

        if auto_augment == "trivial":
            self.transform = TrivialAugmentWide(interpolation=InterpolationMode(interpolation))
            return
        settings: dict[str, Any] = dict(color_jitter=color_jitter or None, auto_augment=auto_augment or None)
        try:
            parts = transforms_imagenet_train(
                img_size, interpolation=interpolation, separate=True, mean=tuple(mean), **settings
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise TransformError(
                f"auto_augment={auto_augment!r} is not understood by timm ({error}); write e.g. 'rand-m9-mstd0.5-inc1'"
            ) from None
        self.transform = parts[1]  # timm's list is: crop and flip, augmentation, normalisation
        for operation in _operations(self.transform):
            if operation.aug_fn is timm_posterize:
                operation.aug_fn = _posterize

    def __call__(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        """(3, H, W) uint8 -> augmented image of the same shape. `seed` belongs to the sample, below 2 ** 63."""
        from PIL import Image

        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        with seeded(seed):
            picture = self.transform(picture)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _operations(transform) -> Iterator[Any]:
    """timm's `AugmentOp`s inside a composed transform or a policy."""
    if hasattr(transform, "aug_fn"):
        yield transform
        return
    parts = transform if isinstance(transform, list | tuple) else None
    for name in ("transforms", "ops", "policy"):
        parts = getattr(transform, name, parts)
    for part in parts if isinstance(parts, list | tuple) else ():
        yield from _operations(part)


def _posterize(image, bits_to_keep: int, **unused):
    """timm's, which keeps 0 bits at its greatest strength: a black image. New versions of Pillow refuse 0 bits."""
    from PIL import ImageOps

    if bits_to_keep >= 8:
        return image
    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep > 0 else image.point(lambda value: 0)

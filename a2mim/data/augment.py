"""timm's and torchvision's photometric augmentations, of a finished crop; an optional path, imported when asked for.

They draw from Python's, numpy's and torch's global generators, which are seeded from the sample's key around each call:
so the number of workers and the moment of a resume change nothing.
"""

import numpy as np
import torch

from a2mim.data.transforms import TransformError, seeded


class Augment:
    """RandAugment and its like, or colour jitter.

    Args:
        auto_augment: timm's words, e.g. "rand-m9-mstd0.5-inc1" or "original"; "trivial" is torchvision's
            TrivialAugmentWide; "" none.
        color_jitter: strength of brightness, contrast and saturation, at least 0; as in timm it is left out where there
            is auto_augment.
        img_size: of the crop, in pixels; timm's translations are relative to it.
        mean: per channel, in units of 0..1: the colour of what a rotation uncovers.
        interpolation: "bilinear" or "bicubic".

    Raises:
        TransformError: words that timm does not understand.
    """

    def __init__(self, auto_augment: str, color_jitter: float, img_size: int, mean, interpolation: str):
        from timm.data.transforms_factory import transforms_imagenet_train
        from torchvision.transforms import InterpolationMode, TrivialAugmentWide

        if auto_augment == "trivial":
            self.transform = TrivialAugmentWide(interpolation=InterpolationMode(interpolation))
            return
        settings = dict(color_jitter=color_jitter or None, auto_augment=auto_augment or None, mean=tuple(mean))
        try:
            parts = transforms_imagenet_train(img_size, interpolation=interpolation, separate=True, **settings)
        except (AssertionError, KeyError, ValueError) as error:
            raise TransformError(
                f"auto_augment={auto_augment!r} is not understood by timm ({error}); write e.g. 'rand-m9-mstd0.5-inc1'"
            ) from None
        self.transform = parts[1]  # between the crop with its flip, and normalisation

    def __call__(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        """(3, H, W) uint8 -> the same, changed; `seed` is the sample's, below 2 ** 63."""
        from PIL import Image

        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        with seeded(seed):
            picture = self.transform(picture)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

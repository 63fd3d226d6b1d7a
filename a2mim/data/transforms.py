"""Extra image transforms from mmcv's registry or from the user. Their result depends only on the sample.

A transform gets mmcv's usual dictionary. results["img"] is the whole decoded image, (H, W, C), uint8 or uint16, in RGB
order. The transform must return such an array; H and W may change. mmcv itself assumes BGR: if a transform has the
argument color_format, set it to "rgb". Transforms draw from the global generators of numpy, Python and torch. These are
seeded from the sample's key before the call and restored after it.
"""

import random
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from a2mim.text import nearest


class TransformError(ValueError):
    """A configured transform cannot be used."""


class Transforms:
    """Applies a list of transforms.

    Args:
        configs: dictionaries for mmcv's TRANSFORMS registry, as dict(type="RandomGrayscale", prob=0.2,
            keep_channels=True), or objects that take and return the results dictionary. mmcv is imported only when
            there is a dictionary.
    """

    def __init__(self, configs: Sequence = ()):
        self.transforms = [_build(config) if isinstance(config, dict) else config for config in configs]

    def __call__(self, pixels: np.ndarray, seed: int) -> np.ndarray:
        """(H, W, C) -> (H', W', C) of the same dtype. `seed` belongs to the sample, below 2 ** 53."""
        if not self.transforms:
            return pixels
        results: dict[str, Any] = {"img": pixels, "img_shape": pixels.shape[:2], "ori_shape": pixels.shape[:2]}
        with seeded(seed):
            for transform in self.transforms:
                results = transform(results)
                _check(results, transform, pixels)
        return results["img"]


@contextmanager
def seeded(seed: int):
    """Seeds the global generators of Python, numpy and torch (CPU), and restores their states at the end."""
    import torch

    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the GPU
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def is_registered_transform(name: str) -> bool:
    """True if mmcv's registry has the name; imports only mmcv."""
    from mmcv.transforms import TRANSFORMS

    return name in TRANSFORMS.module_dict


def _build(config: dict):
    from mmcv.transforms import TRANSFORMS

    name = config.get("type")
    if isinstance(name, str) and TRANSFORMS.get(name) is None:
        hint = nearest(name, TRANSFORMS.module_dict, cutoff=0.4, listed=False)
        raise TransformError(f"the transform {name!r} is not in mmcv's registry{hint}")
    try:
        return TRANSFORMS.build(config)
    except (TypeError, AssertionError, KeyError, ValueError) as error:
        raise TransformError(f"the transform {dict(config)} cannot be built: {error}") from error


def _check(results, transform, given: np.ndarray) -> None:
    name = type(transform).__name__
    image = results.get("img") if isinstance(results, dict) else None
    if not isinstance(image, np.ndarray):
        raise TransformError(f"the transform {name} returned no results['img'] array; it must return the dictionary")
    channels = given.shape[2]
    if image.dtype != given.dtype or image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        raise TransformError(
            f"the transform {name} made an image of {image.dtype} {image.shape}; it must stay {given.dtype} "
            f"(H, W, {channels}): normalisation happens later, on the device"
        )

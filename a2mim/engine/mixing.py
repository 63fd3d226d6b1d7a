"""From stored images and labels to what a classifier trains on: erased, mixed, smoothed; all of it timm's.

Erasing is keyed by (seed, epoch, image), mixing by (seed, step, process, micro-batch): neither depends on workers or
on where a run was resumed. On a GPU the noise inside an erased rectangle comes from its own generator, which is seeded
a step.
"""

from __future__ import annotations

import numpy as np
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from a2mim.data import keyed
from a2mim.data.transforms import seeded
from a2mim.engine.finetune_settings import Mix


class Mixing:
    """Random erasing, then mixup or cutmix, with label smoothing.

    Args:
        num_classes: K.
        erasing: probability of a rectangle of noise.
        mix: the recipe's `mix`; with mixup and cutmix both 0, nothing is mixed.
        seed: of the run.
        device: of the images.
    """

    def __init__(self, num_classes: int, erasing: float, mix: Mix, seed: int, device: torch.device):
        self.num_classes, self.smoothing, self.seed = num_classes, mix.smoothing, seed
        self.share, self.erasing = erasing, RandomErasing(1.0, mode="pixel", device=device)  # share: see `erase`
        self.mixup = None
        if mix.mixup or mix.cutmix:
            self.mixup = Mixup(mix.mixup, mix.cutmix, label_smoothing=self.smoothing, num_classes=num_classes)

    def erase(self, images: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """(B, C, H, W) normalised float, changed in place; ids: (B,), the images' numbers."""
        if not self.share:
            return images
        keys = ids.numpy().astype(np.uint64)
        chosen = keyed.uniforms(self.seed, epoch, keys, 1, keyed.ERASING)[:, 0] < self.share
        seeds = keyed.hashes(self.seed, epoch, keys, 2, keyed.ERASING)[:, 1] >> np.uint64(1)
        for row in np.flatnonzero(chosen):  # seeding costs 0.1 ms an image, so only where it is needed
            with seeded(int(seeds[row])):
                self.erasing(images[row])
        return images

    def mix(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """(images, (B, K) float targets); B must be even where images are mixed, since each is mixed with another."""
        if self.mixup is None:
            return images, mixup_target(labels, self.num_classes, smoothing=self.smoothing)
        with seeded(seed):
            return self.mixup(images, labels)

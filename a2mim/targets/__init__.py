"""What the hidden area is compared with.

A target is called as target(images) with whole, normalised images (B, C, H, W) and returns (B, channels, H / stride,
W / stride) without gradient. It states `channels` and `stride` (pixels a cell). Optional methods:

- attach(encoder, mean, std): called once the encoder is built and again when its weights were loaded; a target takes
  from it what it needs to know (image size, stride, normalisation, weights);
- after_step(encoder, step, steps): called after each optimiser step; step counts from 1.

A target that holds a network is a `Held` module: outside parameters, training mode and copies, inside the checkpoint.
A target that states neither channels nor stride is image-shaped.
"""

from a2mim.targets.descriptors import HOG, LBP
from a2mim.targets.frozen import FrozenFeatures
from a2mim.targets.held import Held
from a2mim.targets.moving import MovingAverage
from a2mim.targets.patches import NormalizedPatches, Pixels
from a2mim.targets.random_features import RandomFeatures

TARGETS = {"pixels": Pixels, "hog": HOG, "lbp": LBP, "random": RandomFeatures, "moving_average": MovingAverage}

__all__ = [
    "HOG",
    "LBP",
    "TARGETS",
    "FrozenFeatures",
    "Held",
    "MovingAverage",
    "NormalizedPatches",
    "Pixels",
    "RandomFeatures",
]

"""Distances between a prediction and the target.

Every loss is called as loss(recon, target, hidden) with recon and target (B, C, h, w) float and hidden (B, 1, h, w)
bool (True = hidden), on the target's grid. It computes in float32 whatever the autocast and has a `name`. It returns a
scalar, finite for every finite input; a loss of several terms returns {"term": scalar}.
"""

from a2mim.losses.fourier import FourierLoss, full_spectrum_mean
from a2mim.losses.masked import FloatLoss, MaskedCosine, MaskedFocalL1, MaskedL1, MaskedL2, MaskedSmoothL1
from a2mim.losses.patches import PatchDiscrimination

__all__ = [
    "FloatLoss",
    "FourierLoss",
    "MaskedCosine",
    "MaskedFocalL1",
    "MaskedL1",
    "MaskedL2",
    "MaskedSmoothL1",
    "PatchDiscrimination",
    "full_spectrum_mean",
]

"""Distances per cell of the target's grid, averaged over the hidden cells of the batch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2mim.registry import MODELS, check_number


def absolute(distance: Tensor) -> Tensor:
    """L1: the distance itself."""
    return distance


class Focal:
    """Focal L1: |d| * (2 sigmoid(alpha |d|) - 1)^gamma; about alpha / 2 * d^2 for small d at gamma 1.

    The gradient flows through the factor. 2 sigmoid(x) - 1 = tanh(x / 2), which keeps its digits near 0.
    """

    def __init__(self, alpha: float, gamma: float):
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, distance: Tensor) -> Tensor:
        # the floor keeps the derivative of x^gamma finite at 0 for gamma < 1
        return distance * torch.tanh(self.alpha * distance / 2).clamp_min(1e-12) ** self.gamma


class FloatLoss(nn.Module):
    """Runs `distance` in float32, outside autocast. The one parent of the losses; it holds nothing else."""

    def forward(self, recon: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        """recon, target: (B, C, H, W) float; hidden: (B, 1, H, W) bool. Returns a float32 scalar."""
        if recon.shape != target.shape:
            raise ValueError(f"recon {tuple(recon.shape)} and target {tuple(target.shape)} must have the same shape")
        with torch.autocast(recon.device.type, enabled=False):
            return self.distance(recon.float(), target.float(), hidden)

    def distance(self, recon: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        """The loss of float32 maps; each loss has its own."""
        raise NotImplementedError


@MODELS.register_module()
class MaskedL1(FloatLoss):
    """Mean absolute difference over the hidden pixels of the whole batch.

    Args:
        visible_weight: weight of a visible pixel beside 1 for a hidden one; 0 in every published recipe.

    Source: A²MIM, https://arxiv.org/abs/2205.13943: sum(l * m) / (sum(m) + 1e-5) / C.
    """

    name = "l1"
    criterion: Callable[[Tensor], Tensor] = staticmethod(absolute)

    def __init__(self, visible_weight: float = 0.0):
        super().__init__()
        check_number(type(self).__name__, visible_weight=visible_weight)
        self.visible_weight = visible_weight

    def distance(self, recon: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        weight = torch.where(hidden, 1.0, self.visible_weight)
        error = self.criterion((recon - target).abs())
        return (error * weight).sum() / (weight.sum() + 1e-5) / recon.shape[1]


@MODELS.register_module()
class MaskedFocalL1(MaskedL1):
    """`MaskedL1` with the focal factor (2 sigmoid(alpha |d|) - 1)^gamma: what the published CNN recipes use.

    Args:
        alpha, gamma: the factor's steepness (per unit of normalised pixel value) and exponent, both >= 0.
        visible_weight: as in `MaskedL1`.
    """

    name = "focal_l1"

    def __init__(self, alpha: float = 0.2, gamma: float = 1.0, visible_weight: float = 0.0):
        super().__init__(visible_weight)
        check_number("MaskedFocalL1", alpha=alpha, gamma=gamma)
        self.criterion = Focal(alpha, gamma)


@MODELS.register_module()
class MaskedL2(MaskedL1):
    """Mean squared difference over the hidden cells of the whole batch and all channels.

    Args:
        visible_weight: as in `MaskedL1`.

    Source: MAE, https://arxiv.org/abs/2111.06377.
    """

    name = "l2"
    criterion = staticmethod(torch.square)


@MODELS.register_module()
class MaskedSmoothL1(MaskedL1):
    """d^2 / (2 beta) below `beta` and |d| - beta / 2 above, averaged over the batch's hidden cells and all channels.

    Args:
        beta: difference at which the square ends, in units of the target, > 0; near 0 the loss is `MaskedL1`.
        visible_weight: as in `MaskedL1`.

    Source: torch's smooth_l1_loss; data2vec uses beta 2, I-JEPA 1.
    """

    name = "smooth_l1"

    def __init__(self, beta: float = 1.0, visible_weight: float = 0.0):
        super().__init__(visible_weight)
        check_number("MaskedSmoothL1", above=True, beta=beta)
        self.beta = beta

    def criterion(self, distance: Tensor) -> Tensor:
        """|d| -> its smooth L1."""
        return F.smooth_l1_loss(distance, torch.zeros_like(distance), reduction="none", beta=self.beta)


@MODELS.register_module()
class MaskedCosine(FloatLoss):
    """1 - cosine between prediction and target over the channels of a cell, averaged over the batch's hidden cells.

    Args:
        visible_weight: weight of a visible cell beside 1 for a hidden one; EVA's and MVP's recipes have 0.

    Source: MVP, https://arxiv.org/abs/2203.05175, and EVA, https://arxiv.org/abs/2211.07636, which minimise -cosine;
        MILAN's 2 - 2 cosine is weight=2.
    """

    name = "cosine"
    scale_free = True  # the length of a cell's features does not count

    def __init__(self, visible_weight: float = 0.0):
        super().__init__()
        check_number("MaskedCosine", visible_weight=visible_weight)
        self.visible_weight = visible_weight

    def distance(self, recon: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        weight = torch.where(hidden, 1.0, self.visible_weight)
        error = 1 - F.cosine_similarity(recon, target, dim=1, eps=1e-6)[:, None]
        return (error * weight).sum() / (weight.sum() + 1e-5)

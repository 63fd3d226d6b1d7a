"""Telling the hidden cells of an image apart."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from a2mim.losses.masked import FloatLoss
from a2mim.registry import MODELS, check_number

MOST = 10_000  # cells of an image; their products take 0.4 GB


@MODELS.register_module()
class PatchDiscrimination(FloatLoss):
    """Cross-entropy of finding a hidden cell's own target among those of all hidden cells of the same image.

    Predictions and targets are normalised to unit length; the logits are their products over `tau`. A constant answer
    scores 2 tau log(hidden cells), so it cannot win on smooth or random targets, where a regression loss lets it.
    Memory grows with the square of the number of cells of an image, so there must be at most 10,000.

    Args:
        tau: temperature, > 0. The loss is multiplied by 2 tau, so that its gradient does not grow as tau falls.

    Raises:
        ValueError: from the call, when an image has more cells.

    Source: patch discrimination of OlmoEarth, https://arxiv.org/abs/2511.13655.
    """

    name = "patches"
    scale_free = True  # the length of a cell's features does not count

    def __init__(self, tau: float = 0.1):
        super().__init__()
        check_number("PatchDiscrimination", above=True, tau=tau)
        self.tau = tau

    def distance(self, recon: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        cells = recon.shape[2] * recon.shape[3]
        if cells > MOST:
            raise ValueError(
                f"PatchDiscrimination compares every hidden cell with all others of its image, and the target has"
                f" {cells} cells an image (at most {MOST}); choose a target with larger cells, such as 'hog' or a"
                " teacher's features, or another loss"
            )
        predicted, true = (F.normalize(cells.flatten(2), dim=1) for cells in (recon, target))
        shown = ~hidden.flatten(1)  # (B, N)
        logits = torch.einsum("bcn,bcm->bnm", predicted, true) / self.tau
        logits = logits.masked_fill(shown[:, None, :], -math.inf)
        own = torch.diagonal(logits, dim1=1, dim2=2).masked_fill(shown, 0.0)
        total = torch.logsumexp(logits.masked_fill(shown.all(1)[:, None, None], 0.0), dim=2)
        error = (total - own).masked_fill(shown, 0.0)
        return 2 * self.tau * error.sum() / ((~shown).sum() + 1e-5)

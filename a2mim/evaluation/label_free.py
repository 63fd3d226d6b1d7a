"""Measures of a representation that need no label: how many directions it uses, and how evenly.

All functions take Z (N, D): pooled features, one row an image, evaluation mode, no augmentation. They compute in
float64. None of them says how well classes are separated: pure noise has full rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RANKME_EPS = 1e-7
LIDAR_DELTA, LIDAR_EPS = 1e-4, 1e-8
ALPHA_FIRST, ALPHA_LAST = 11, 100  # places of the eigenvalues that α is fitted on; the last also at most D / 2
_PAIRS_AT_ONCE = 2**24  # numbers


@dataclass(frozen=True)
class PowerLaw:
    """Slope of log eigenvalue against log place.

    Attributes:
        alpha: minus the slope; about 1 is good, far above 1 few directions carry all, towards 0 isotropic noise.
        r2: how much of the variance the line explains.
        first, last: places (from 1) that were fitted.
    """

    alpha: float
    r2: float
    first: int
    last: int


def rankme(features: Tensor) -> float:
    """exp(entropy) of the singular values of uncentred Z, each share plus 1e-7.

    The mean of all features hides the rank: a large one is a single direction. `effective_rank` with centring is what
    a2mim compares. Compare at equal N ≥ 10 D, and never across D.

    Source: RankMe (https://arxiv.org/abs/2210.02885).
    """
    shares = _shares(torch.linalg.svdvals(_checked(features))) + RANKME_EPS
    return math.exp(-(shares * shares.log()).sum().item())


def effective_rank(features: Tensor, centred: bool = True) -> float:
    """exp(entropy) of the singular values, by default of centred Z: from 1 (one direction) to D (isotropic).

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    z = _checked(features)
    return _entropy_rank(torch.linalg.svdvals(z - z.mean(0) if centred else z))


def eigenvalue_rank(features: Tensor) -> float:
    """exp(entropy) of the eigenvalues of the covariance: stricter, as eigenvalues are squares of singular values."""
    return _entropy_rank(covariance_eigenvalues(features))


def participation_ratio(features: Tensor) -> float:
    """(Σλ)² / Σλ² of the covariance's eigenvalues: how many directions carry the variance."""
    values = covariance_eigenvalues(features)
    return _ratio(values.sum() ** 2, (values**2).sum())


def covariance_eigenvalues(features: Tensor) -> Tensor:
    """(min(N, D),) float64, largest first."""
    z = _checked(features)
    return torch.linalg.svdvals(z - z.mean(0)) ** 2 / max(1, len(z) - 1)


def alpha_req(features: Tensor, first: int = ALPHA_FIRST, last: int | None = None) -> PowerLaw | None:
    """α of λ_i ∝ i^-α; None where fewer than three eigenvalues above 0 lie in the range.

    Fitted on places 11 to min(100, D / 2): the whole spectrum is bent by a small N.

    Source: α-ReQ (https://arxiv.org/abs/2202.07569); the range is ours.
    """
    values = covariance_eigenvalues(features)
    values = values[values > values[0] * 1e-12] if len(values) and values[0] > 0 else values[:0]
    last = min(ALPHA_LAST, features.shape[1] // 2, len(values)) if last is None else min(last, len(values))
    if last - first < 2:
        return None
    x = torch.arange(first, last + 1, dtype=torch.float64).log()
    y = values[first - 1 : last].cpu().log()
    dx, dy = x - x.mean(), y - y.mean()
    slope = (dx * dy).sum() / (dx * dx).sum()
    residual = ((dy - slope * dx) ** 2).sum()
    total = (dy**2).sum()
    return PowerLaw(-slope.item(), 1 - _ratio(residual, total), first, last)


def lidar(views: Tensor, delta: float = LIDAR_DELTA) -> float:
    """RankMe of the discriminant between images, each seen in several views.

    For masked pre-training the views are masks of one image. At most n - 1. Pure noise scores as much as signal: it
    counts directions, not separability, and compares runs of one method only.

    Args:
        views: (n, q, D), q ≥ 2 views of n ≥ 2 images.
        delta: added to the diagonal of the scatter within images.

    Raises:
        ValueError: too few images or views.

    Source: LiDAR (https://arxiv.org/abs/2312.04000).
    """
    if views.ndim != 3 or min(views.shape[:2]) < 2:
        raise ValueError(f"LiDAR needs (images, views, channels) with at least 2 of both, got {tuple(views.shape)}.")
    views = views.double()
    n, q, dim = views.shape
    means = views.mean(1)
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / (n - 1)
    inside = (views - means[:, None]).flatten(0, 1)
    within = inside.T @ inside / (n * (q - 1)) + delta * torch.eye(dim, dtype=torch.float64, device=views.device)
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors @ torch.diag(values.clamp(min=1e-12) ** -0.5) @ vectors.T
    found = torch.linalg.eigvalsh(whiten @ between @ whiten).clamp(min=0)
    shares = _shares(found) + LIDAR_EPS
    return math.exp(-(shares * shares.log()).sum().item())


def uniformity(features: Tensor, centred: bool = True) -> float:
    """log of the mean of exp(-2 ‖z_i - z_j‖²) over pairs of unit vectors: 0 is collapse, about -4 is uniform.

    Source: Wang and Isola (https://arxiv.org/abs/2005.10242). Without centring, features of masked pre-training sit
    near 0 however good they are.
    """
    z = _checked(features)
    if len(z) < 2:
        raise ValueError("uniformity needs at least two images.")
    z = torch.nn.functional.normalize(z - z.mean(0) if centred else z, dim=1)
    total = 0.0
    for block in z.split(max(1, _PAIRS_AT_ONCE // len(z))):
        total += (4 * (block @ z.T) - 4).exp().sum().item()  # ‖a - b‖² = 2 - 2 a·b
    return math.log(max(total - len(z), 0.0) / (len(z) * (len(z) - 1)) + 1e-300)


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean ‖z - z⁺‖² of unit vectors: (N, D) features of two views of the same images."""
    if first.shape != second.shape:
        raise ValueError(f"alignment pairs two views of the same images, got {len(first)} and {len(second)}.")
    a, b = (torch.nn.functional.normalize(_checked(z), dim=1) for z in (first, second))
    return (a - b).square().sum(1).mean().item()


def spatial_rank(cells: Tensor) -> float:
    """Mean over images of the centred effective rank of their cells; near 1 all cells of an image are alike.

    Args:
        cells: (B, N, D).
    """
    found = cells.double()
    found = found - found.mean(1, keepdim=True)
    return sum(_entropy_rank(values) for values in torch.linalg.svdvals(found)) / len(found)


def feature_deviation(features: Tensor) -> float:
    """Mean over dimensions of the deviation over images of unit features; under 0.01 / √D is collapse."""
    z = torch.nn.functional.normalize(_checked(features), dim=1)
    return z.std(0, correction=0).mean().item()


def has_collapsed(features: Tensor, untrained: Tensor) -> str:
    """Why a network counts as collapsed, or "".

    Args:
        features, untrained: (N, D) of the same images through the network, and through it before training.
    """
    rank, before = effective_rank(features), effective_rank(untrained)
    if rank < 0.1 * before:
        return f"the effective rank is {rank:.1f}, under a tenth of the untrained network's {before:.1f}"
    deviation, least = feature_deviation(features), 0.01 / math.sqrt(features.shape[1])
    if deviation < least:
        return f"unit features deviate by {deviation:.2g} over the images, under {least:.2g}"
    return ""


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 1:
        raise ValueError(f"features must be (images, channels), got {tuple(features.shape)}.")
    if not torch.isfinite(features).all():
        raise ValueError("the features are not finite: the encoder has diverged.")
    return features.double()


def _shares(values: Tensor) -> Tensor:
    total = values.sum()
    return values / total if total > 0 else torch.zeros_like(values)


def _entropy_rank(values: Tensor) -> float:
    """exp(entropy); 1 where all values are 0."""
    shares = _shares(values)
    shares = shares[shares > 0]
    return math.exp(-(shares * shares.log()).sum().item()) if len(shares) else 1.0


def _ratio(part: Tensor, whole: Tensor) -> float:
    return (part / whole).item() if whole > 0 else 0.0

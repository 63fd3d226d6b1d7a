"""L2 logistic regression on frozen features. Held-out training images choose the strength of the penalty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from a2mim.evaluation.features import check_features, class_positions, refuse_below_one
from a2mim.evaluation.linear import hold_out
from a2mim.text import ProgressBar

_BLOCK_BYTES = 2**27  # of scores held at once
_KEPT_BYTES = 2**28  # of features kept in float64; larger sets are read again for each step


def logreg(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    c_powers: Sequence[float] = (-6.0, 5.0),
    c_values: int = 45,
    max_iterations: int = 1000,
    tolerance: float = 1e-12,
    held_out: float = 0.1,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> dict:
    """Minimises C · (sum of cross-entropies) + |weights|² / 2, biases free, by L-BFGS in float64.

    C is the value of the grid that is most accurate on held-out training images; the smallest of several such values.
    The last fit takes all training images. The grid is fitted from the strongest penalty to the weakest, and
    each fit starts from the line through the two before it. The start does not change the optimum.

    Args:
        train_features, test_features: (N, D) and (M, D) float, in memory or on disk.
        train_labels, test_labels: (N,) and (M,) int64 >= 0, any values.
        c_powers, c_values: the grid is 10 to the power of `c_values` evenly spaced numbers between the two `c_powers`.
        tolerance: a fit ends when one step lowers the loss by less than this share of it.
        held_out: share of each class that chooses C, in (0, 1).
        device: where to compute. None: where the features are.

    Returns:
        "top1", "top5" in percent, "correct" (M,) bool, "C", "held_out_top1" and the constants; "not_converged" counts
        fits that ended at max_iterations.

    Source: https://github.com/facebookresearch/dinov2, dinov2/eval/log_regression.py (cuML's solver there).
    """
    check_features(train_features, train_labels, test_features, test_labels)
    constants: dict[str, Any] = {
        "c_powers": c_powers,
        "c_values": c_values,
        "max_iterations": max_iterations,
        "tolerance": tolerance,
    }
    fitted = fit_logreg(train_features, train_labels, held_out=held_out, seed=seed, device=device, **constants)
    wanted = class_positions(fitted.classes, test_labels)
    rank = fitted.problem.ranks(fitted.weights, test_features, wanted, torch.arange(len(test_labels)))
    result = {
        "protocol": "logreg",
        "top1": 100 * (rank == 0).double().mean().item(),
        "top5": 100 * (rank < 5).double().mean().item(),
        "C": fitted.c,
        "held_out_top1": fitted.held_out_top1,
        "not_converged": fitted.not_converged,
        "seed": seed,
        "n_train": len(train_labels),
        "n_test": len(test_labels),
        "n_classes": len(fitted.classes),
        "correct": rank == 0,
    }
    return result | ({"note": fitted.note} if fitted.note else {})


@dataclass(frozen=True)
class FittedLogreg:
    """A fitted logistic regression.

    Attributes:
        weights: (C, D + 1) float64; the last column is the bias.
        classes: (C,) the sorted labels that the rows stand for.
        c: strength of the data against the penalty.
        held_out_top1: accuracy in percent by which C was chosen, or None.
        not_converged: fits that ended at the limit of iterations.
        note: a sentence about C, or "".
        problem: what was solved.
    """

    weights: Tensor
    classes: Tensor
    c: float
    held_out_top1: float | None
    not_converged: int
    note: str
    problem: Softmax

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, C) float32, on the features' device."""
        weights = self.weights.to(features.device, torch.float32)
        return features.float() @ weights[:, :-1].T + weights[:, -1]


def fit_logreg(
    features: Tensor,
    labels: Tensor,
    c_powers: Sequence[float] = (-6.0, 5.0),
    c_values: int = 45,
    max_iterations: int = 1000,
    tolerance: float = 1e-12,
    held_out: float = 0.1,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> FittedLogreg:
    """Chooses C on held-out images and fits all of them; arguments as in `logreg`."""
    refuse_below_one(c_values=c_values, max_iterations=max_iterations)
    classes, targets = torch.unique(labels, return_inverse=True)
    grid = [float(c) for c in 10 ** np.linspace(c_powers[0], c_powers[1], c_values)]
    chosen = hold_out(labels, held_out, seed)
    note, failed, accuracy = "", 0, None
    device = features.device if device is None else device
    if len(classes) == 1 or len(chosen) == 0 or len(grid) == 1:
        c = grid[len(grid) // 2]
        note = f"C = {c:g}, the middle of the grid: " + (
            "one value was given" if len(grid) == 1 else "no class has two training images to choose it with"
        )
    else:
        kept = torch.ones(len(targets), dtype=torch.bool)
        kept[chosen] = False
        problem = Softmax(features, targets, torch.nonzero(kept)[:, 0], len(classes), device)
        scores: list[float] = []
        fitted: list[Tensor] = []  # the last two: weights change nearly linearly with log C
        for value in ProgressBar(grid, desc="logistic regression", unit="C", leave=False):
            start = 2 * fitted[-1] - fitted[-2] if len(fitted) == 2 else fitted[-1] if fitted else None
            weights, converged = problem.fit(value, start, max_iterations, tolerance)
            fitted = [*fitted[-1:], weights]
            failed += not converged
            ranks = problem.ranks(weights, features, targets, chosen)
            scores.append((ranks == 0).double().mean().item())
        c, accuracy = grid[int(np.argmax(scores))], 100 * max(scores)
        if c in (grid[0], grid[-1]):
            note = "the chosen C is at the end of the grid"
    problem = Softmax(features, targets, torch.arange(len(targets)), len(classes), device)
    weights, converged = problem.fit(c, None, max_iterations, tolerance)
    return FittedLogreg(weights, classes, c, accuracy, failed + (not converged), note, problem)


class Softmax:
    """Multinomial logistic regression on some rows of features.

    L-BFGS works in other coordinates, with the same optimum: the features are centred and turned onto their principal
    axes, and each coordinate is divided by the root of the loss's curvature along it. It needs tens of steps there,
    and a thousand with features as they are. With fewer rows than dimensions only the rows' own span is searched: the
    penalty makes the weights 0 outside it.

    Args:
        features: (N, D), in memory or on disk.
        targets: (N,) int64 in 0..C-1.
        rows: the rows to fit.
        n_classes: C.
        device: where to compute.
    """

    def __init__(self, features: Tensor, targets: Tensor, rows: Tensor, n_classes: int, device: torch.device | str):
        self.features, self.rows, self.n_classes, self.device = features, rows, n_classes, device
        self.targets = targets[rows].to(device)
        self.block = max(1, _BLOCK_BYTES // (8 * max(n_classes, features.shape[1])))
        self.turned: Tensor | None = None  # (n, R) features on the axes, where they are few enough to be kept
        total = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
        self.mean = sum((x.sum(dim=0) for x in self._blocks()), start=total) / len(rows)
        self.variances, self.axes = self._principal_axes()
        if 8 * len(rows) * self.axes.shape[1] <= _KEPT_BYTES:
            self.turned = torch.cat([(x - self.mean) @ self.axes for x in self._blocks()])

    def _blocks(self) -> Iterator[Tensor]:
        """(B, D) features as they are, or (B, R) on the axes where these are kept; float64."""
        if self.turned is not None:
            return iter(self.turned.split(self.block))
        return (self.features[rows].to(self.device, torch.float64) for rows in self.rows.split(self.block))

    def _principal_axes(self) -> tuple[Tensor, Tensor]:
        """(R,) variances and (D, R) orthonormal axes, R the smaller of rows and dimensions."""
        dim = len(self.mean)
        span = torch.eye(dim, dtype=torch.float64, device=self.device)
        if len(self.rows) < dim:
            span = torch.linalg.qr((torch.cat(list(self._blocks())) - self.mean).T).Q
        covariance = torch.zeros(span.shape[1], span.shape[1], dtype=torch.float64, device=self.device)
        for x in self._blocks():
            centred = x - self.mean
            if span.shape[1] < dim:
                centred = centred @ span
            covariance += centred.T @ centred
        variances, axes = torch.linalg.eigh(covariance / len(self.rows))
        return variances.clamp(min=0), span @ axes

    def fit(self, c: float, start: Tensor | None, max_iterations: int, tolerance: float) -> tuple[Tensor, bool]:
        """((C, D + 1) weights and biases, whether the fit converged).

        The loss is divided by c · n, so that its size, and the tolerance, mean the same for every c.
        """
        from scipy.optimize import (
            minimize,  # imported here: it takes a third of a second, which no other command should wait for
        )

        penalty = 1 / (c * len(self.rows))
        first = torch.zeros(self.n_classes, self.axes.shape[1] + 1, dtype=torch.float64, device=self.device)
        if start is not None:
            first[:, :-1] = start[:, :-1] @ self.axes
            first[:, -1] = start[:, -1] + start[:, :-1] @ self.mean
        scale = (self._curvature(first) + penalty).rsqrt()

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self._loss(torch.from_numpy(flat).to(self.device).view_as(first) * scale, penalty)
            return value, (gradient * scale).cpu().numpy().ravel()

        options: dict[str, float] = {"maxiter": max_iterations, "maxfun": 10 * max_iterations, "maxls": 50}
        options |= {"ftol": tolerance, "gtol": 1e-8}
        found = minimize(loss, (first / scale).cpu().numpy().ravel(), jac=True, method="L-BFGS-B", options=options)
        return self._as_given(torch.from_numpy(found.x).to(self.device).view_as(first) * scale), bool(found.success)

    def _as_given(self, turned: Tensor) -> Tensor:
        """Weights for centred features on the axes (C, R + 1) -> weights for features as they are (C, D + 1).

        The same number added to every bias changes no answer, so the biases are made to sum to 0.
        """
        weights = turned[:, :-1] @ self.axes.T
        biases = turned[:, -1] - weights @ self.mean
        return torch.cat([weights, (biases - biases.mean())[:, None]], dim=1)

    def _curvature(self, weights: Tensor) -> Tensor:
        """(C, R + 1): the cross-entropy's second derivative along each axis for each class at these weights, roughly.

        Roughly: the mean of p (1 - p) times the axis's variance.
        """
        used = weights if self.turned is not None else self._as_given(weights)
        total = torch.zeros(self.n_classes, dtype=torch.float64, device=self.device)
        for x in self._blocks():
            shares = (x @ used[:, :-1].T + used[:, -1]).softmax(dim=1)
            total += (shares * (1 - shares)).sum(dim=0)
        ones = torch.ones_like(self.variances[:1])
        return torch.outer(total / len(self.rows), torch.cat([self.variances, ones]))

    def _loss(self, weights: Tensor, penalty: float) -> tuple[float, Tensor]:
        """(mean cross-entropy + penalty · |weights without biases|² / 2, its gradient), both (C, R + 1)."""
        used = weights if self.turned is not None else self._as_given(weights)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        gradient = torch.zeros_like(used)
        for x, wanted in zip(self._blocks(), self.targets.split(self.block), strict=True):
            log_likelihood = (x @ used[:, :-1].T + used[:, -1]).log_softmax(dim=1)
            total -= log_likelihood.gather(1, wanted[:, None]).sum()
            error = log_likelihood.exp_()
            error[torch.arange(len(wanted), device=self.device), wanted] -= 1
            gradient[:, :-1] += error.T @ x
            gradient[:, -1] += error.sum(dim=0)
        gradient /= len(self.rows)
        if self.turned is None:
            turned = (gradient[:, :-1] - gradient[:, -1:] * self.mean) @ self.axes
            gradient = torch.cat([turned, gradient[:, -1:]], dim=1)
        matrix = weights[:, :-1]
        gradient[:, :-1] += penalty * matrix
        return (total / len(self.rows) + penalty * matrix.square().sum() / 2).item(), gradient

    def ranks(self, weights: Tensor, features: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """(n,) int64: how many classes score above the true one; more than C where the target is -1."""
        found = []
        for part in rows.split(self.block):
            wanted = targets[part].to(self.device)
            scores = features[part].to(self.device, torch.float64) @ weights[:, :-1].T + weights[:, -1]
            above = (scores > scores.gather(1, wanted.clamp(min=0)[:, None])).sum(dim=1)
            found.append(torch.where(wanted >= 0, above, len(weights) + 5).cpu())
        return torch.cat(found)

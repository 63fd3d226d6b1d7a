"""L2 logistic regression on frozen features; the strength of the penalty is chosen on held-out training images."""

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from a2mim.evaluation.features import check_features, class_positions, refuse_below_one
from a2mim.evaluation.linear import hold_out

_BLOCK_BYTES = 2**27  # of scores held at once


def logreg(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    c_powers=(-6.0, 5.0),
    c_values: int = 45,
    max_iterations: int = 1000,
    tolerance: float = 1e-12,
    held_out: float = 0.1,
    seed: int = 0,
    device=None,
) -> dict:
    """Minimises C · (sum of cross-entropies) + |weights|² / 2, biases free, by L-BFGS in float64.

    C is the one of the grid that is best on held-out training images; of equals the smallest. The last fit is on all
    training images. Each fit starts from the last one, from the strongest penalty on: the optimum is the same.

    Args:
        train_features, test_features: (N, D) and (M, D) float, maybe on disk; taken to the device block by block.
        train_labels, test_labels: (N,) and (M,) int64 >= 0, any values.
        c_powers, c_values: the grid: 10 to the power of so many evenly spaced numbers.
        tolerance: of the relative change of the loss, at which a fit ends.
        held_out: share of each class that chooses C, in (0, 1).
        device: None: where the features are.

    Returns:
        "top1", "top5" in percent, "correct" (M,) bool, "C", "held_out_top1" and the constants; "not_converged" counts
        fits that ended at max_iterations.

    Source: https://github.com/facebookresearch/dinov2, dinov2/eval/log_regression.py (cuML's solver there).
    """
    refuse_below_one(c_values=c_values, max_iterations=max_iterations)
    check_features(train_features, train_labels, test_features, test_labels)
    classes, targets = torch.unique(train_labels, return_inverse=True)
    grid = [float(c) for c in 10 ** np.linspace(*c_powers, c_values)]
    chosen = hold_out(train_labels, held_out, seed)
    note, failed, accuracy = "", 0, None
    device = train_features.device if device is None else device
    if len(classes) == 1 or len(chosen) == 0 or len(grid) == 1:
        c = grid[len(grid) // 2]
        note = f"C = {c:g}, the middle of the grid: " + (
            "one value was given" if len(grid) == 1 else "no class has two training images to choose it with"
        )
    else:
        kept = torch.ones(len(targets), dtype=torch.bool)
        kept[chosen] = False
        problem = Softmax(train_features, targets, torch.nonzero(kept)[:, 0], len(classes), device)
        scores, start = [], None
        for value in tqdm(grid, desc="logistic regression", unit="C", leave=False):
            start, converged = problem.fit(value, start, max_iterations, tolerance)
            failed += not converged
            ranks = problem.ranks(start, train_features, targets, chosen)
            scores.append((ranks == 0).double().mean().item())
        c, accuracy = grid[int(np.argmax(scores))], 100 * max(scores)
        if c in (grid[0], grid[-1]):
            note = "the chosen C is at the end of the grid"
    problem = Softmax(train_features, targets, torch.arange(len(targets)), len(classes), device)
    weights, converged = problem.fit(c, None, max_iterations, tolerance)
    rank = problem.ranks(weights, test_features, class_positions(classes, test_labels), torch.arange(len(test_labels)))
    result = {
        "protocol": "logreg",
        "top1": 100 * (rank == 0).double().mean().item(),
        "top5": 100 * (rank < 5).double().mean().item(),
        "C": c,
        "held_out_top1": accuracy,
        "not_converged": failed + (not converged),
        "seed": seed,
        "n_train": len(train_labels),
        "n_test": len(test_labels),
        "n_classes": len(classes),
        "correct": rank == 0,
    }
    return result | ({"note": note} if note else {})


class Softmax:
    """Multinomial logistic regression on some rows of features: loss, gradient and scores, block by block.

    L-BFGS works in coordinates in which the features are centred and white, up to the penalty: the optimum is the
    same, and is reached in tens of steps where raw features take a thousand.

    Args:
        features: (N, D), read from wherever they lie; targets: (N,) in 0..C-1; rows: those that are fitted.
    """

    def __init__(self, features: Tensor, targets: Tensor, rows: Tensor, n_classes: int, device):
        self.features, self.targets, self.rows = features, targets, rows
        self.shape, self.device = (n_classes, features.shape[1] + 1), device  # the bias is the last column
        self.block = max(1, _BLOCK_BYTES // (8 * max(n_classes, features.shape[1])))
        total, squares = 0, 0
        for x in self._blocks():
            total, squares = total + x.sum(dim=0), squares + x.T @ x
        self.mean = total / len(rows)
        self.variances, self.axes = torch.linalg.eigh(squares / len(rows) - torch.outer(self.mean, self.mean))

    def _blocks(self):
        return (self.features[rows].to(self.device, torch.float64) for rows in self.rows.split(self.block))

    def fit(self, c: float, start: Tensor | None, max_iterations: int, tolerance: float) -> tuple[Tensor, bool]:
        """((C, D + 1) weights and biases, whether the fit converged).

        The loss is divided by c · n, so that its size, and the tolerance, mean the same for every c.
        """
        from scipy.optimize import minimize  # a third of a second, which starting a run need not wait for

        penalty = 1 / (c * len(self.rows))
        curvature = self.variances.clamp(min=0) / self.shape[0] + penalty  # of the loss along each axis, roughly
        whiten = self.axes * curvature.rsqrt()  # (D, D)

        def outside(flat: np.ndarray) -> Tensor:
            """The optimiser's coordinates -> weights and biases."""
            inside = torch.from_numpy(flat.reshape(self.shape)).to(self.device)
            weights = inside[:, :-1] @ whiten.T
            return torch.cat([weights, (inside[:, -1] - weights @ self.mean)[:, None]], dim=1)

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.loss(outside(flat), penalty)
            centred = gradient[:, :-1] - gradient[:, -1:] * self.mean
            gradient = torch.cat([centred @ whiten, gradient[:, -1:]], dim=1)
            return value, gradient.cpu().numpy().ravel()

        first = np.zeros(self.shape)
        if start is not None:
            first[:, :-1] = (start[:, :-1] @ self.axes * curvature.sqrt()).cpu().numpy()
            first[:, -1] = (start[:, -1] + start[:, :-1] @ self.mean).cpu().numpy()
        options = {"maxiter": max_iterations, "maxfun": 10 * max_iterations, "maxls": 50}
        options |= {"ftol": tolerance, "gtol": 1e-8}
        found = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", options=options)
        return outside(found.x), bool(found.success)

    def loss(self, weights: Tensor, penalty: float) -> tuple[float, Tensor]:
        """(mean cross-entropy + penalty · |weights without biases|² / 2, its gradient (C, D + 1))."""
        matrix, bias = weights[:, :-1], weights[:, -1]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        gradient = torch.zeros_like(weights)
        for x, rows in zip(self._blocks(), self.rows.split(self.block), strict=True):
            wanted = self.targets[rows].to(self.device)
            log_likelihood = (x @ matrix.T + bias).log_softmax(dim=1)
            total -= log_likelihood.gather(1, wanted[:, None]).sum()
            error = log_likelihood.exp_()
            error[torch.arange(len(wanted), device=self.device), wanted] -= 1
            gradient[:, :-1] += error.T @ x
            gradient[:, -1] += error.sum(dim=0)
        gradient /= len(self.rows)
        gradient[:, :-1] += penalty * matrix
        return (total / len(self.rows) + penalty * matrix.square().sum() / 2).item(), gradient

    def ranks(self, weights: Tensor, features: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        """(n,) int64: how many classes score above the true one; after all of them where the target is -1."""
        found = []
        for part in rows.split(self.block):
            wanted = targets[part].to(self.device)
            scores = features[part].to(self.device, torch.float64) @ weights[:, :-1].T + weights[:, -1]
            above = (scores > scores.gather(1, wanted.clamp(min=0)[:, None])).sum(dim=1)
            found.append(torch.where(wanted >= 0, above, len(weights) + 5).cpu())
        return torch.cat(found)

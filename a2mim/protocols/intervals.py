"""Uncertainty of percentages: an interval for one number, a paired interval for the difference of two.

It needs no torch, so that a report can be made without. Answers may be tensors or arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Z_95 = 1.959964  # two-sided 95 % of the normal distribution
FEWEST_DIFFERENT = 6  # five answers that all changed the same way still happen by chance in 2 / 2^5 > 5 % of cases


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion, in percent; stays inside 0..100 and has a width also at 0 % and 100 %.

    Source: E. B. Wilson, JASA 22 (1927).
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} right of {total} images is no proportion: give 0 <= correct <= total, total >= 1.")
    share, z2 = correct / total, Z_95**2 / total
    centre = share + z2 / 2
    half = Z_95 * (share * (1 - share) / total + z2 / (4 * total)) ** 0.5
    low, high = (centre - half) / (1 + z2), (centre + half) / (1 + z2)
    return 100 * max(0.0, min(low, share)), 100 * min(1.0, max(high, share))  # share: rounding at 0 % and 100 %


def bootstrap_interval(correct: Tensor | np.ndarray, seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap of an accuracy, in percent: test images are drawn with replacement.

    If all answers are alike, every draw is the same; then the interval is Wilson's.

    Args:
        correct: (M,) bool.
    """
    total, right = len(correct), int(correct.sum())
    if total == 0 or right in (0, total):
        return wilson_interval(right, total)
    # an image is right or wrong, so drawing images with replacement is drawing the number of those that are right
    draws = np.random.default_rng(seed).binomial(total, right / total, size=resamples)
    low, high = np.percentile(draws / total, [2.5, 97.5])
    return 100 * float(low), 100 * float(high)


def bootstrap_mean(values, seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap of a mean: (n,) numbers, drawn with replacement."""
    values = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired_difference(
    correct_a: Tensor | np.ndarray, correct_b: Tensor | np.ndarray, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Accuracy of b minus accuracy of a on the same test images, with its 95 % bootstrap interval, in points.

    Args:
        correct_a, correct_b: (M,) bool, image by image in the same order.

    Returns:
        (difference, low, high).
    """
    change = _change(correct_a, correct_b)
    total = len(change)
    # an image counts -1, 0 or 1, so drawing images with replacement is drawing these three counts
    counts = np.array([(change == value).sum() for value in (-1, 0, 1)])
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=resamples)
    low, high = np.percentile((draws[:, 2] - draws[:, 0]) / total, [2.5, 97.5])
    return 100 * float(change.mean()), 100 * float(low), 100 * float(high)


@dataclass(frozen=True)
class Difference:
    """Two judgements on the same test images.

    Attributes:
        name: what was judged, for example "linear probe".
        points, low, high: accuracy after minus before with the paired 95 % interval, in points.
        word: "gain", "loss", or "none" where these test images can show no difference.
        n_test: test images.
    """

    name: str
    points: float
    low: float
    high: float
    word: str
    n_test: int

    def sentence(self) -> str:
        words = {"gain": "a gain", "loss": "a loss", "none": f"no difference that {self.n_test} test images can show"}
        change = f"{self.points:+.1f} points, 95 % interval {self.low:+.1f} to {self.high:+.1f}"
        return f"{self.name}: {words[self.word]} ({change})."


def difference(
    name: str, correct_before: Tensor | np.ndarray, correct_after: Tensor | np.ndarray, seed: int = 0
) -> Difference:
    """The judgement on the change between the answers before and after, (M,) bool each."""
    points, low, high = paired_difference(correct_before, correct_after, seed)
    different = int((_change(correct_before, correct_after) != 0).sum())
    shown = different >= FEWEST_DIFFERENT and not low <= 0 <= high
    word = ("gain" if points > 0 else "loss") if shown else "none"
    return Difference(name, points, low, high, word, len(correct_before))


def verdict(what: str, correct_before: Tensor | np.ndarray, correct_after: Tensor | np.ndarray, seed: int = 0) -> str:
    """One sentence: gain, loss, or no difference that this test set can show."""
    return difference(what, correct_before, correct_after, seed).sentence()


def _change(correct_a: Tensor | np.ndarray, correct_b: Tensor | np.ndarray) -> np.ndarray:
    """(M,) int in {-1, 0, 1}: b minus a, image by image."""
    if correct_a.shape != correct_b.shape or correct_a.ndim != 1 or len(correct_a) == 0:
        raise ValueError(
            "a paired difference needs answers to the same images: "
            f"got {tuple(correct_a.shape)} and {tuple(correct_b.shape)}."
        )
    before, after = (x if isinstance(x, np.ndarray) else x.cpu().numpy() for x in (correct_a, correct_b))
    return after.astype(np.int64) - before.astype(np.int64)

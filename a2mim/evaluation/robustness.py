"""Accuracy of a probe, trained on clean images, on damaged ones; and how well its probabilities are calibrated.

Every damage is drawn with three seeds. Clean accuracy, damaged accuracy and their ratio are reported together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from a2mim.evaluation.damage import SEVERITIES, corrupt, occlude, shuffle_tiles

SEEDS = (0, 1, 2)
DROPS = tuple(i / 10 for i in range(10))
TILES = (1, 2, 4, 8, 16)
BINS = 15

Classifier = Callable[[Tensor], Tensor]  # (B, C, H, W) normalised -> (B, classes) scores


@dataclass(frozen=True)
class Damaged:
    """Accuracy under one kind of damage.

    Attributes:
        name: of the damage.
        clean: accuracy in percent without damage.
        accuracy: {strength: mean accuracy over seeds}.
        spread: {strength: standard deviation over seeds, in points}.
    """

    name: str
    clean: float
    accuracy: dict[float, float]
    spread: dict[float, float]

    @property
    def ratio(self) -> dict[float, float]:
        """{strength: damaged / clean accuracy}."""
        return {key: value / self.clean if self.clean else math.nan for key, value in self.accuracy.items()}

    @property
    def mean(self) -> float:
        """Mean accuracy over the strengths, in percent: the area under the curve where they are evenly spaced."""
        return float(np.mean(list(self.accuracy.values())))


def occlusion(
    classify: Classifier, batches: Iterable, grid: tuple[int, int], how: str = "random", norms=None
) -> Damaged:
    """Accuracy when 0 to 90 % of the cells are hidden (0 after normalisation).

    Args:
        classify: the frozen network and its probe.
        batches: [(images (B, C, H, W) normalised, labels (B,))], looked at again for each strength.
        grid: (h, w) cells.
        how: "random", "most" or "least" salient cells first.
        norms: images -> (B, h·w) norms of the features of the cells: the salience; needed unless random.
    """
    if how not in ("random", "most", "least") or (how != "random" and norms is None):
        raise ValueError(f"how={how!r} was given: random, most or least, the latter two with norms of the cells.")

    def damage(images: Tensor, seeds: np.ndarray, drop: float) -> Tensor:
        salience = None if how == "random" else norms(images) * (1 if how == "most" else -1)
        return occlude(images, drop, grid, seeds, salience)

    return _measure(f"occlusion, {how}", classify, batches, damage, DROPS, 0.0, SEEDS if how == "random" else (0,))


def patch_shuffle(classify: Classifier, batches: Iterable) -> Damaged:
    """Accuracy when g × g tiles change places, for each g that divides the image; a bag of textures keeps it."""
    batches = list(batches)
    height, width = batches[0][0].shape[2:]
    fitting = tuple(tiles for tiles in TILES if height % tiles == 0 and width % tiles == 0)
    return _measure(
        "patch shuffle", classify, batches, lambda x, seeds, tiles: shuffle_tiles(x, int(tiles), seeds), fitting, 1
    )


def corruption(classify: Classifier, batches: Iterable, name: str, normalize: Classifier) -> Damaged:
    """Accuracy under one corruption, severities 1 to 5 (0 is clean).

    Args:
        batches: [(images (B, 3, H, W) uint8, labels (B,))].
        name: one of CORRUPTIONS.
        normalize: uint8 images -> what `classify` takes.
    """

    def damage(images: Tensor, seeds: np.ndarray, severity: float) -> Tensor:
        if not severity:
            return normalize(images)
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        found = [corrupt(x, name, int(severity), int(seed)) for x, seed in zip(pixels, seeds, strict=True)]
        return normalize(torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2))

    return _measure(name, classify, batches, damage, (0, *SEVERITIES), 0)


def corruption_errors(found: list[Damaged]) -> dict[str, float]:
    """Mean error over corruptions and severities, and that minus the clean error, in percent.

    This is not mCE, which divides by AlexNet's errors on ImageNet, over fifteen corruptions.
    """
    errors = [100 - d.accuracy[s] for d in found for s in SEVERITIES]
    clean = float(np.mean([100 - d.clean for d in found]))
    return {"error": float(np.mean(errors)), "relative_error": float(np.mean(errors)) - clean, "kinds": len(found)}


def _measure(name, classify: Classifier, batches, damage, strengths, none, seeds=SEEDS) -> Damaged:
    """Accuracies of every strength; seeds of images are (seed, number of the image) in one number."""
    batches, found = list(batches), {}
    if not batches or not sum(len(labels) for _, labels in batches):
        raise ValueError("there is no image to damage: give at least one.")
    for strength in strengths:
        repeats = (0,) if strength == none else seeds
        found[strength] = [_accuracy(classify, batches, damage, strength, seed) for seed in repeats]
    accuracy = {key: float(np.mean(values)) for key, values in found.items()}
    return Damaged(name, accuracy[none], accuracy, {key: float(np.std(values)) for key, values in found.items()})


@torch.no_grad()
def _accuracy(classify: Classifier, batches, damage, strength: float, seed: int) -> float:
    right = total = 0
    for images, labels in batches:
        seeds = (np.arange(len(labels)) + total) * len(SEEDS) + seed
        right += int((classify(damage(images, seeds, strength)).argmax(1).cpu() == labels.cpu()).sum())
        total += len(labels)
    return 100 * right / total


@dataclass(frozen=True)
class Calibration:
    """How honest probabilities are.

    Attributes:
        temperature: that logits are divided by, fitted on training images that were held out.
        ece: expected calibration error after it, in percent, 15 bins; biased upwards on small sets.
        interval: 95 % percentile bootstrap over test images.
        ece_before: without the temperature.
        brier, nll: Brier score and negative log-likelihood after it.
        n_test: images.
    """

    temperature: float
    ece: float
    interval: tuple[float, float]
    ece_before: float
    brier: float
    nll: float
    n_test: int


def calibration(
    held_logits: Tensor, held_labels: Tensor, test_logits: Tensor, test_labels: Tensor, seed: int = 0
) -> Calibration:
    """ECE after temperature scaling. For linear and attentive heads: votes of k-NN are no probabilities.

    Args:
        held_logits, held_labels: (N, C) and (N,) of training images that the head was not fitted on.
        test_logits, test_labels: (M, C) and (M,).

    Source: Guo et al. (https://arxiv.org/abs/1706.04599).
    """
    temperature = fit_temperature(held_logits, held_labels)
    logits = test_logits.double()
    scaled = (logits / temperature).softmax(1)
    truth = torch.nn.functional.one_hot(test_labels, logits.shape[1])
    generator, found = np.random.default_rng(seed), []
    for _ in range(500):
        rows = torch.from_numpy(generator.integers(len(scaled), size=len(scaled)))
        found.append(expected_calibration_error(scaled[rows], test_labels[rows]))
    low, high = np.percentile(found, [2.5, 97.5])
    return Calibration(
        temperature,
        expected_calibration_error(scaled, test_labels),
        (float(low), float(high)),
        expected_calibration_error(logits.softmax(1), test_labels),
        (scaled - truth).square().sum(1).mean().item(),
        torch.nn.functional.nll_loss(scaled.clamp(min=1e-12).log(), test_labels).item(),
        len(test_labels),
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of least negative log-likelihood, between 0.01 and 100, by golden-section search of its log."""
    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return torch.nn.functional.cross_entropy(logits / math.exp(log_temperature), labels).item()

    low, high, golden = math.log(0.01), math.log(100), (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return math.exp((low + high) / 2)


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Σ n_b / N · |accuracy_b - confidence_b| in percent, over equal bins of the largest probability."""
    confidence, told = probabilities.max(1)
    place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(
        0, place.cpu(), ((told == labels).double() - confidence).cpu()
    )
    return 100 * gap.abs().sum().item() / len(labels)

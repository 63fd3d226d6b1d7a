"""Which images BatchNorm's statistics are taken from, and in which batches: one answer for every caller.

BatchNorm normalises a calibration batch by that batch's own statistics. So the statistics depend on which images share
a batch, and a batch of one class gives wrong ones. Invariant: the rows and the batches are a function of the data set
alone. The caller's `--batch-size` and `--seed` change neither.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from a2mim.data import EvalLoader, ImageDataset

IMAGES = 1024  # at most
BATCH = 64  # images in a batch, whatever --batch-size says
DESCRIPTION = {"calibration": 1, "images": IMAGES, "batch": BATCH}  # part of every cache key; count it up on a change


def calibration_rows(
    dataset: ImageDataset, n: int = IMAGES, seed: int = 0, among: np.ndarray | None = None
) -> np.ndarray:
    """(min(n, N),) int64: rows of the data set to calibrate BatchNorm on, in the order in which to show them.

    The rows are spread over the whole set. Labelled images are balanced: every class gives the same number, as far as
    it has that many. Any run of consecutive rows, such as a batch, is balanced in the same way.

    Args:
        n: number of images, at least 1.
        seed: of the choice.
        among: (M,) int64 rows to choose from; None: all.
    """
    labels = np.asarray(dataset.labels)
    if among is None:
        return balanced_rows(labels, n, seed)
    among = np.asarray(among, np.int64)
    return among[balanced_rows(labels[among], n, seed)]


def balanced_rows(labels: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """`calibration_rows` of (N,) int labels; a negative label means that the image has none."""
    if n < 1:
        raise ValueError(f"n={n} images to calibrate on: give at least 1.")
    generator = np.random.default_rng(seed)
    n = min(n, len(labels))
    unlabelled = np.flatnonzero(labels < 0)
    order = np.argsort(labels, kind="stable")[len(unlabelled) :]
    classes = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
    n_unlabelled = round(n * len(unlabelled) / len(labels)) if len(labels) else 0
    quotas = _quotas(np.array([len(rows) for rows in classes], np.int64), n - n_unlabelled, generator)
    rows, turns = [], []
    for members, quota in zip([unlabelled, *classes], [n_unlabelled, *quotas], strict=True):
        rows.append(members[_spread(len(members), quota, generator)])
        turns.append((generator.permutation(quota) + generator.random(quota)) / max(quota, 1))
    return np.concatenate(rows)[np.argsort(np.concatenate(turns), kind="stable")].astype(np.int64)


def calibration_loader(
    dataset: ImageDataset, img_size, resize: int | None, interpolation: str, num_workers: int = 0
) -> EvalLoader:
    """Central crops of the calibration images, in batches of BATCH; the arguments are those of `EvalLoader`."""
    rows = calibration_rows(dataset)
    return EvalLoader(dataset, img_size, resize, interpolation, BATCH, num_workers, indices=rows)


def calibration_batches(loader: EvalLoader, normalized) -> Iterator[Tensor]:
    """What `calibrate_batchnorm` takes: normalised batches (B, C, H, W).

    Args:
        normalized: images as the loader gives them -> normalised float images.
    """
    return (normalized(batch["images"]) for batch in loader)


def _spread(number: int, chosen: int, generator: np.random.Generator) -> np.ndarray:
    """(chosen,) positions below `number`: one drawn from each of `chosen` equal parts."""
    edges = np.arange(chosen + 1) * number // max(chosen, 1)
    return edges[:-1] + (generator.random(chosen) * np.diff(edges)).astype(np.int64)


def _quotas(counts: np.ndarray, total: int, generator: np.random.Generator) -> np.ndarray:
    """(K,) images of each class, `total` together: equal numbers, unless a class has too few."""
    quotas = np.zeros(len(counts), np.int64)
    shuffled = generator.permutation(len(counts))  # chance decides which classes give the remainder
    smallest_first = shuffled[np.argsort(counts[shuffled], kind="stable")]
    for done, i in enumerate(smallest_first):
        quotas[i] = min(counts[i], total // (len(counts) - done))
        total -= quotas[i]
    return quotas

"""Mean intersection over union from counts of pixels over a whole test set.

Invariant: only pixels whose truth is not ignored are counted, and the mean is over the classes that the test set has.
False positives of an absent class still hurt the classes that they were taken from.
"""

from __future__ import annotations

import numpy as np


def confusion(predicted: np.ndarray, truth: np.ndarray, n_classes: int, ignore: int) -> np.ndarray:
    """(C, C) int64 counts, truth by prediction.

    Args:
        predicted, truth: (H, W) int; predictions lie in 0 … C-1, truth there or is `ignore`.

    Raises:
        ValueError: shapes that differ, or ids out of range.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"a prediction of {predicted.shape} px cannot be compared with a truth of {truth.shape} px.")
    judged = truth != ignore
    told, known = predicted[judged].astype(np.int64), truth[judged].astype(np.int64)
    for what, ids in (("prediction", told), ("truth", known)):
        if len(ids) and (ids.min() < 0 or ids.max() >= n_classes):
            raise ValueError(f"the {what} holds class {ids.max()}, there are classes 0 to {n_classes - 1}.")
    return np.bincount(known * n_classes + told, minlength=n_classes**2).reshape(n_classes, n_classes)


def ious(counts: np.ndarray) -> np.ndarray:
    """(..., C, C) counts -> (..., C) IoU in percent; NaN for a class without truth."""
    right = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    truth, told = counts.sum(-1), counts.sum(-2)
    return np.where(truth > 0, 100 * right / np.maximum(truth + told - right, 1), np.nan)


def scores(counts: np.ndarray) -> dict:
    """All numbers of a (C, C) confusion, in percent: mIoU, how many classes it averages, and accuracies."""
    each, truth = ious(counts), counts.sum(1)
    present = truth > 0
    if not present.any():
        raise ValueError("no pixel of the test set has a class: every mask is ignored.")
    recall = np.diagonal(counts)[present] / truth[present]
    return {
        "miou": float(np.nanmean(each)),
        "classes_averaged": int(present.sum()),
        "iou": [None if np.isnan(value) else float(value) for value in each],
        "pixel_accuracy": 100 * float(np.diagonal(counts).sum() / truth.sum()),
        "class_accuracy": 100 * float(recall.mean()),
    }


def interval(counts: np.ndarray, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """95 % percentile bootstrap of mIoU: (n, C, C) counts of test images, drawn with replacement."""
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=resamples)
    flat = counts.reshape(len(counts), -1).astype(np.float64)
    found = [_mean_or_nan(ious((some @ flat).reshape(-1, *counts.shape[1:]))) for some in np.array_split(draws, 20)]
    low, high = np.nanpercentile(np.concatenate(found), [2.5, 97.5])
    return float(low), float(high)


def _mean_or_nan(each: np.ndarray) -> np.ndarray:
    """(n, C) -> (n,) mean over the classes that occur."""
    there = ~np.isnan(each)
    return np.where(there, each, 0).sum(-1) / np.where(there.any(-1), there.sum(-1), np.nan)

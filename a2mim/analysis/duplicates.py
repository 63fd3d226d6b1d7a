"""Near-duplicates: images that are equal but for their size, their compression and small changes of brightness.

Two tests must both hold, on a grey thumbnail of 32 x 32 px. The perceptual hashes differ in at most 4 of 63 bits; a bit
says whether one of the lowest frequencies lies above the median. And the thumbnails correlate by at least 0.95, because
silhouettes on one background share their hash. Crops, mirror images and turned images are not found.

Source of the hash: C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010 ("pHash").
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dctn
from torch import Tensor

from a2mim.data import ImageDataset
from a2mim.data.pixel_format import UnreadableImage
from a2mim.text import ProgressBar

SIDE, FREQUENCIES = 32, 8  # of a thumbnail; lowest frequencies along each axis
BITS, CORRELATION = 4, 0.95  # that may differ at most; at least
FLAT = 1 / 255  # of the range: an image whose grey values deviate less has nothing that could be compared
_ROWS = 1024  # compared at once with all others
_NAMED = 10  # pairs that are named


@dataclass(frozen=True)
class Fingerprints:
    """What is compared of the images that can be.

    Args:
        rows: (N,) of the data set.
        signs: (N, 63) float32, +1 or -1 for each bit of the hash.
        thumbnails: (N, 1024) float32 of mean 0 and length 1.
    """

    rows: np.ndarray
    signs: Tensor
    thumbnails: Tensor

    def near(self, other: Fingerprints) -> Iterator[tuple[int, int]]:
        """(place in this, place in the other) of every pair of near-duplicates."""
        for start in range(0, len(self.rows), _ROWS):
            some = slice(start, start + _ROWS)
            bits = (self.signs.shape[1] - self.signs[some] @ other.signs.T) / 2
            alike = (bits <= BITS) & (self.thumbnails[some] @ other.thumbnails.T >= CORRELATION)
            for first, second in alike.nonzero().tolist():
                yield start + first, second


def fingerprints(dataset: ImageDataset, rows: np.ndarray) -> Fingerprints:
    """Of some images; unreadable ones, and those of one colour, are left out."""
    kept, thumbnails = [], []
    dataset.will_need(rows)
    for row in ProgressBar(rows.tolist(), desc="duplicates: images", leave=False, unit="img"):
        with contextlib.suppress(UnreadableImage):
            thumbnail = thumbnail_of(dataset.read(row))
            if thumbnail.std() > FLAT:
                kept.append(row)
                thumbnails.append(thumbnail)
    stacked = np.stack(thumbnails) if thumbnails else np.empty((0, SIDE, SIDE), np.float32)
    lowest = dctn(stacked, axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES].reshape(-1, FREQUENCIES**2)[:, 1:]
    above = lowest > np.median(lowest, axis=1, keepdims=True)
    centred = torch.from_numpy(stacked - stacked.mean(axis=(1, 2), keepdims=True)).flatten(1)
    signs = torch.from_numpy(np.where(above, 1, -1).astype(np.float32))
    return Fingerprints(np.array(kept, np.int64), signs, F.normalize(centred))


def thumbnail_of(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8 or uint16 -> (32, 32) float32 in 0..1: the mean over channels and over each thumbnail's cell."""
    grey = torch.from_numpy(pixels.mean(axis=2, dtype=np.float32) / np.iinfo(pixels.dtype).max)
    return F.adaptive_avg_pool2d(grey[None], SIDE)[0].numpy()


def near_duplicates(
    train: ImageDataset, train_rows: np.ndarray, test: ImageDataset, test_rows: np.ndarray
) -> dict[str, Any]:
    """Counts training images that nearly repeat one another, and test images that nearly repeat a training image.

    Returns:
        "message"; "train" and "test": how many images were compared; "repeated": training images with a near-duplicate
        among these; "in_both": test images with one among the training images, None where both are the same images;
        "pairs": the names of the first pairs.
    """
    ours = fingerprints(train, train_rows)
    inside = [(a, b) for a, b in ours.near(ours) if a < b]
    pairs = [(train.name(ours.rows[a]), train.name(ours.rows[b])) for a, b in inside[:_NAMED]]
    found: dict[str, Any] = {"train": len(ours.rows), "repeated": len({place for pair in inside for place in pair})}
    told = f"{found['repeated']:,} of {found['train']:,} training images nearly repeat another one"
    found |= {"test": 0, "in_both": None}
    if test is not train:
        theirs = fingerprints(test, test_rows)
        across = list(theirs.near(ours))
        found |= {"test": len(theirs.rows), "in_both": len({place for place, _ in across})}
        told += f"; {found['in_both']:,} of {found['test']:,} test images nearly repeat a training image"
        pairs += [(test.name(theirs.rows[a]), train.name(ours.rows[b])) for a, b in across[:_NAMED]]
    return {"message": f"{told}.", **found, "pairs": pairs}

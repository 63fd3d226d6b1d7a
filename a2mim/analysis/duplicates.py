"""Images of a data set that repeat one another, and test images that repeat training images: exactly, or nearly.

`a2mim.evaluation.overlap` says what counts as nearly equal: copies of another size, compression or brightness. Crops,
mirror images and turned images are not found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from a2mim.data import EvalLoader, ImageDataset
from a2mim.evaluation.overlap import find_overlap, find_repeats, signatures
from a2mim.text import ProgressBar

SIDE = 64  # pixels of the central square that is compared
_BATCH = 64  # images
_NAMED = 10  # pairs of each kind that are named

Pairs = dict[str, list[tuple[int, int]]]  # "exact" and "near": places of two images


def duplicates(
    train: ImageDataset, train_rows: np.ndarray, test: ImageDataset, test_rows: np.ndarray
) -> dict[str, Any]:
    """Counts the images that repeat another one, among some rows of each part.

    Returns:
        "message"; "train" and "test": how many images could be read and compared; "repeated": {"exact", "near"}
        training images that repeat another one; "in_both": the same of test images that repeat a training image, or
        None where both parts are the same images; "pairs": the names of some pairs.
    """
    rows, seen = _look(train, train_rows)
    pairs = find_repeats(seen)
    names = [(train.name(rows[a]), train.name(rows[b])) for a, b in _some(pairs)]
    found: dict[str, Any] = {"train": len(rows), "repeated": _count(pairs), "test": 0, "in_both": None}
    told = f"of {len(rows):,} training images {_in_words(pairs)} another one"
    if test is not train:
        test_rows, test_seen = _look(test, test_rows)
        pairs = find_overlap(seen, test_seen)
        names += [(test.name(test_rows[a]), train.name(rows[b])) for a, b in _some(pairs)]
        found |= {"test": len(test_rows), "in_both": _count(pairs)}
        told += f"; of {len(test_rows):,} test images {_in_words(pairs)} a training image"
    return {"message": told, **found, "pairs": names}


def _look(dataset: ImageDataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the readable images, their signatures (N, 5) int64)."""
    ids, found = [np.empty(0, np.int64)], [torch.empty(0, 5, dtype=torch.int64)]
    loader = EvalLoader(dataset, SIDE, resize=None, batch_size=_BATCH, indices=rows)
    for batch in ProgressBar(loader, desc="duplicates", leave=False, unit="batch"):
        ids.append(np.asarray(batch["ids"]))
        found.append(signatures(batch["images"]))
    return np.concatenate(ids), torch.cat(found).numpy()


def _count(pairs: Pairs) -> dict[str, int]:
    return {kind: len(found) for kind, found in pairs.items()}


def _in_words(pairs: Pairs) -> str:
    exact, near = (len(pairs[kind]) for kind in ("exact", "near"))
    return f"{exact:,} repeat exactly, and {near:,} nearly,"


def _some(pairs: Pairs) -> list[tuple[int, int]]:
    """The first pairs of each kind; a pair of two images that name one another is there once."""
    return [pair for found in pairs.values() for pair in _once(found)[:_NAMED]]


def _once(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    known = set(found)
    return [(a, b) for a, b in found if a < b or (b, a) not in known]

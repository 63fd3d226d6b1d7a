"""`seg-knn`: the nearest training cells vote for every pixel inside a cell with the labels of their own pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from a2mim.evaluation.miou import confusion, scores
from a2mim.evaluation.segmentation import SegmentationTask, shares, split_images

DISTANCES = ("cosine", "l2")
_NUMBERS = 2**25  # of similarities or votes held at once


@dataclass
class Bank:
    """Training cells: standardised features (n, D), and the labels of their pixels (n, p·q), -1 where ignored."""

    features: Tensor
    pixels: Tensor
    mean: Tensor
    scale: Tensor

    def neighbours(self, queries: Tensor, k: int, distance: str) -> Tensor:
        """(m, D) cells -> (m, k) rows, nearest first."""
        queries = (queries - self.mean) * self.scale
        bank, rows = self.features, []
        if distance == "cosine":
            bank, queries = (torch.nn.functional.normalize(x, dim=1) for x in (bank, queries))
        half = bank.square().sum(1) / 2 if distance == "l2" else torch.zeros(1, device=bank.device)
        for some in queries.split(max(1, _NUMBERS // len(bank))):
            rows.append((some @ bank.T - half).topk(min(k, len(bank)), dim=1).indices)
        return torch.cat(rows)


def run(task: SegmentationTask, c: dict) -> tuple[Iterator[np.ndarray], dict]:
    """(predictions of the test images, what was chosen)."""
    held, kept = split_images(len(task.train), c["held_out"], c["seed"])
    bank = make_bank(task, kept, c)
    found = {(k, d): np.zeros((task.n_classes,) * 2, np.int64) for d in DISTANCES for k in c["k_values"]}
    for cells, truth in task.maps(task.train, held, "held-out maps"):
        for distance in DISTANCES:
            rows = bank.neighbours(cells, max(c["k_values"]), distance)
            for k in c["k_values"]:
                predicted = vote(task, bank.pixels[rows[:, :k]], truth.shape)
                found[k, distance] += confusion(predicted, truth, task.n_classes, task.ignore)
    judged = {key: scores(counts)["miou"] if counts.sum() else 0.0 for key, counts in found.items()}
    k, distance = max(judged, key=judged.__getitem__)
    bank = make_bank(task, np.arange(len(task.train)), c)
    maps = task.maps(task.test, np.arange(len(task.test)), "test maps")
    predictions = (vote(task, bank.pixels[bank.neighbours(cells, k, distance)], truth.shape) for cells, truth in maps)
    chosen = {"k": k, "distance": distance, "held_out_miou": judged[k, distance], "held_out": len(held)}
    return predictions, chosen | {"bank_cells": len(bank.features)}


def make_bank(task: SegmentationTask, rows: np.ndarray, c: dict) -> Bank:
    """Cells of some training images, without those whose commonest pixel is ignored; at most `bank_cells` of them."""
    features, pixels = [], []
    generator = np.random.default_rng(c["seed"])
    an_image = max(1, -(-c["bank_cells"] // max(1, len(rows))))
    for cells, mask in task.maps(task.train, rows, "bank"):
        labels = torch.from_numpy(_cell_pixels(task, mask))
        usable = np.flatnonzero(_mode_is_judged(task, mask))
        if len(usable) > an_image:
            usable = np.sort(generator.permutation(usable)[:an_image])
        features.append(cells[torch.from_numpy(usable).to(cells.device)])
        pixels.append(labels[torch.from_numpy(usable)])
    found, labels = torch.cat(features), torch.cat(pixels)
    if not len(found):
        raise ValueError(f"every cell of the training images is ignored (id {task.ignore}).")
    mean, deviation = found.mean(0), found.std(0, correction=0)
    scale = torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0)
    return Bank((found - mean) * scale, labels.to(found.device), mean, scale)


def vote(task: SegmentationTask, pixels: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """(cells, k, p·q) labels of neighbours -> (H, W) classes: each pixel takes the commonest, of equals the smaller id.

    Ignored pixels have no vote; where all neighbours ignore a pixel, the commonest class of the whole cell counts.
    """
    found = []
    for some in pixels.split(max(1, _NUMBERS // (pixels.shape[2] * task.n_classes))):
        votes = torch.zeros(len(some), some.shape[2], task.n_classes + 1, device=some.device)
        index = torch.where(some >= 0, some.long(), task.n_classes).transpose(1, 2)
        votes = votes.scatter_add_(2, index, torch.ones_like(index, dtype=votes.dtype))[..., : task.n_classes]
        whole = votes.sum(1, keepdim=True)
        found.append(torch.where(votes.sum(2, keepdim=True) > 0, votes, whole).argmax(2))
    (h, w), (p, q) = task.reader.grid, _cell_size(task)
    squashed = torch.cat(found).view(h, w, p, q).permute(0, 2, 1, 3).reshape(h * p, w * q).cpu().numpy()
    return _nearest(squashed, size)


def _cell_size(task: SegmentationTask) -> tuple[int, int]:
    return task.size[0] // task.reader.grid[0], task.size[1] // task.reader.grid[1]


def _cell_pixels(task: SegmentationTask, mask: np.ndarray) -> np.ndarray:
    """(cells, p·q) int16 labels of the squashed mask, -1 where ignored."""
    (h, w), (p, q) = task.reader.grid, _cell_size(task)
    squashed = _nearest(mask, task.size)
    squashed = np.where(squashed == task.ignore, -1, squashed).astype(np.int16)
    return squashed.reshape(h, p, w, q).transpose(0, 2, 1, 3).reshape(h * w, p * q)


def _mode_is_judged(task: SegmentationTask, mask: np.ndarray) -> np.ndarray:
    """(cells,) bool: no class is rarer than ignored pixels, that is, the commonest id is a class."""
    pixels = _cell_pixels(task, mask)
    ignored = (pixels < 0).mean(1)
    most = shares(mask, task.reader.grid, task.n_classes, task.ignore).max(1) * (1 - ignored)
    return (most > 0) & (most >= ignored)


def _nearest(labels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Labels at another size: the pixel under the centre of each new one."""
    rows, columns = (((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip(size, labels.shape, strict=True))
    return labels[rows[:, None], columns[None, :]]

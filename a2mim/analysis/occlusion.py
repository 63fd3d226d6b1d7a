"""Accuracy when a part of each image's cells is hidden: by zeros, by the image's mean colour, or by noise.

Cells lie on a grid; round(cells x ratio) of them are hidden, and larger ratios hide more of the same order of cells.
Each image has one order, given by the seed and its number; it is the same for every filling and network.

Source of the measure: Naseer et al., Intriguing Properties of Vision Transformers, NeurIPS 2021; used in A²MIM,
https://arxiv.org/abs/2205.13943.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from a2mim.evaluation import wilson_interval

RATIOS = tuple(i / 10 for i in range(11))
FILLINGS = ("zero", "mean colour", "noise")


def hidden_cells(cells: int, ratio: float, seed: int, number: int) -> np.ndarray:
    """(cells,) bool: which cells of image `number` are hidden."""
    order = np.random.default_rng([seed, number]).permutation(cells)
    hidden = np.zeros(cells, bool)
    hidden[order[: round(cells * ratio)]] = True
    return hidden


def occlude(images: Tensor, hidden: Tensor, grid: tuple[int, int], filling: str, seed: int, first: int) -> Tensor:
    """(B, C, H, W) normalised images with their hidden cells filled.

    Args:
        hidden: (B, cells) bool.
        grid: (rows, columns), which divide the image.
        filling: one of FILLINGS. Noise is N(0, 1) in normalised units.
        seed, first: of the noise: its seed, and the number of the first image.

    Raises:
        ValueError: another filling, or a grid that does not divide the image.
    """
    batch, channels, height, width = images.shape
    if height % grid[0] or width % grid[1]:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} cells does not divide images of {height} x {width} px")
    where = hidden.reshape(batch, 1, *grid)
    where = where.repeat_interleave(height // grid[0], dim=2).repeat_interleave(width // grid[1], dim=3)
    if filling == "zero":
        fill = torch.zeros_like(images)
    elif filling == "mean colour":
        fill = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    elif filling == "noise":
        drawn = [
            np.random.default_rng([seed, first + i, 1]).standard_normal((channels, height, width), np.float32)
            for i in range(batch)
        ]
        fill = torch.from_numpy(np.stack(drawn)).to(images)
    else:
        raise ValueError(f"filling={filling!r} is unknown: choose one of {', '.join(FILLINGS)}")
    return torch.where(where.to(images.device), fill, images)


@torch.no_grad()
def accuracy_under_occlusion(
    answer: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    grid: tuple[int, int],
    seed: int = 0,
    ratios: tuple[float, ...] = RATIOS,
) -> dict[str, dict[str, list[float]]]:
    """Filling -> {"ratio", "top1", "low", "high"}: percent, with the 95 % interval over images.

    Args:
        answer: (B, C, H, W) -> (B,) labels.
        batches: (normalised images, labels).

    Raises:
        ValueError: no image.
    """
    right = {filling: np.zeros(len(ratios), int) for filling in FILLINGS}
    seen = 0
    for images, labels in batches:
        for i, ratio in enumerate(ratios):
            cells = [hidden_cells(grid[0] * grid[1], ratio, seed, seen + n) for n in range(len(images))]
            hidden = torch.from_numpy(np.stack(cells))
            for filling in FILLINGS:
                if not hidden.any() and filling != FILLINGS[0]:
                    right[filling][i] = right[FILLINGS[0]][i]  # nothing is hidden: one pass serves all fillings
                    continue
                found = answer(occlude(images, hidden, grid, filling, seed, seen))
                right[filling][i] += int((found.cpu() == labels).sum())
        seen += len(images)
    if not seen:
        raise ValueError("no image was given to hide a part of")
    result = {}
    for filling, counts in right.items():
        low, high = zip(*(wilson_interval(int(count), seen) for count in counts), strict=True)
        top1 = [100 * int(count) / seen for count in counts]
        result[filling] = {"ratio": list(ratios), "top1": top1, "low": list(low), "high": list(high)}
    return result

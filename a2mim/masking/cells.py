"""The grid of mask cells, and sets of cells as (B, rows, cols) bool tensors."""

import math
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from a2mim.registry import check_whole, is_number


class CellMask:
    """The size of a mask's cells; every mask part of ours has one.

    Args:
        mask_patch_size: side of a cell, pixels; must divide the image's height and width.
    """

    def __init__(self, mask_patch_size: int):
        check_whole(type(self).__name__, mask_patch_size=mask_patch_size)
        self.mask_patch_size = mask_patch_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of cells for an image of height x width pixels."""
        cell = self.mask_patch_size
        if height % cell or width % cell:
            fits = [c for c in range(1, min(height, width) + 1) if height % c == width % c == 0]
            close = sorted(fits, key=lambda c: abs(c - cell))[:2]
            raise ValueError(
                f"mask_patch_size={cell} does not divide the image of {height}x{width} pixels;"
                f" set mask_patch_size to {' or '.join(map(str, close))}, or the image size to a multiple of {cell}"
            )
        return height // cell, width // cell


def check_ratio(mask_ratio: Any) -> None:
    """Raises ValueError for a ratio that is not a fraction."""
    if not is_number(mask_ratio) or not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio={mask_ratio!r} must be a number between 0 and 1 (0.6 hides 60 %)")


def check_pair(name: str, pair: Any, most: float = math.inf) -> tuple[float, float]:
    """(least, greatest) as two numbers above 0 and at most `most`; ValueError for anything else."""
    told = list(pair) if isinstance(pair, list | tuple) else []
    if len(told) != 2 or not all(map(is_number, told)) or not 0 < told[0] <= told[1] <= most:
        limit = f" and at most {most:g}" if most < math.inf else ""
        raise ValueError(f"{name}={pair!r} must be two numbers above 0{limit}, the smaller one first")
    return told[0], told[1]


def some_hidden(count: int, cells: int) -> int:
    """The count, within 1 and cells - 1, so that every image shows a cell; an image of one cell is hidden whole."""
    return max(1, min(count, cells - 1))


def expand_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """(B, rows, cols) bool -> (B, 1, height, width) bool, each cell repeated; whole multiples only."""
    rows, cols = mask.shape[-2:]
    if height % rows or width % cols:
        raise ValueError(f"a mask of {rows}x{cols} cells cannot be repeated to {height}x{width}: not whole multiples")
    return repeat(mask, "b rows cols -> b 1 (rows p) (cols q)", p=height // rows, q=width // cols)


def pool_mask(mask: Tensor, grid: tuple[int, int], strides: tuple[float, float], img_size: tuple[int, int]) -> Tensor:
    """(B, rows, cols) bool mask -> (B, h, w): bool if cells and grid align, else the hidden share of each cell.

    Args:
        strides: pixels per feature cell (vertical, horizontal); the last cell may extend beyond the image.
        img_size: (H, W) in pixels; the cells of the mask tile it.
    """
    sides = [size / cells for size, cells in zip(img_size, mask.shape[1:], strict=True)]
    repeats = [side / stride for side, stride in zip(sides, strides, strict=True)]
    exact = [r == int(r) and r * n == g for r, n, g in zip(repeats, mask.shape[1:], grid, strict=True)]
    if all(exact):
        return mask.repeat_interleave(int(repeats[0]), dim=1).repeat_interleave(int(repeats[1]), dim=2)
    rows, cols = (
        _overlap(size, stride, cells, side, number, mask.device)
        for size, stride, cells, side, number in zip(img_size, strides, grid, sides, mask.shape[1:], strict=True)
    )
    return torch.einsum("hr,brc,wc->bhw", rows, mask.float(), cols)


def _overlap(size: int, stride: float, cells: int, side: float, number: int, device) -> Tensor:
    """(cells, number): the fraction of each feature cell that each mask cell covers, along one axis."""
    start = torch.arange(cells, device=device)[:, None] * stride
    end = (start + stride).clamp(max=size)
    left = torch.arange(number, device=device)[None] * side
    shared = torch.minimum(end, left + side) - torch.maximum(start, left)
    return shared.clamp(min=0) / (end - start)


def rectangle(top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, rows: int, cols: int) -> Tensor:
    """The cells of one rectangle an image: (B,) or 0-d integer tensors -> (B, rows, cols) bool."""
    y = torch.arange(rows, device=top.device)[:, None]
    x = torch.arange(cols, device=top.device)[None, :]
    top, left, tall, wide = (value.reshape(-1, 1, 1) for value in (top, left, tall, wide))
    return (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)


def random_corner(free: int | Tensor, uniform: Tensor) -> Tensor:
    """A whole number from 0 to `free`, both included, equally often; `uniform` lies in [0, 1)."""
    corner = (uniform * (free + 1)).floor()
    most = free.to(uniform.dtype) if isinstance(free, Tensor) else torch.full_like(corner, free)
    return torch.minimum(corner, most).long()


def true_everywhere(condition: Tensor) -> bool:
    """Whether all values are true; waits for the device that they lie on."""
    return bool(condition.cpu().numpy().all())


def places(chosen: Tensor, number: int | None) -> Tensor:
    """(N,) flat places of the True values, in order. number: how many there are; None: counted, for which the host
    waits.
    """
    flat = chosen.flatten()
    return flat.nonzero()[:, 0] if number is None else torch.nonzero_static(flat, size=number)[:, 0]


def keep_lowest(scores: Tensor, among: Tensor, count: int | Tensor) -> Tensor:
    """The `count` cells of `among` with the lowest scores, in each image.

    Args:
        scores: (B, rows, cols) float in [0, 1].
        among: (B, rows, cols) bool, the cells to choose from; where there are fewer than `count`, all of them.
        count: one number, or (B,) integers.
    """
    flat = scores.masked_fill(~among, 2.0).flatten(1)
    rank = flat.argsort(dim=1, stable=True).argsort(dim=1)
    limit = count.reshape(-1, 1) if isinstance(count, Tensor) else count
    return (rank < limit).view_as(among) & among

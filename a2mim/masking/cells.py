"""The grid of mask cells, and sets of cells as (B, rows, cols) bool tensors."""

import torch
from einops import repeat
from torch import Tensor


class CellMask:
    """The size of a mask's cells; every mask part of ours has one.

    Args:
        mask_patch_size: side of a cell, pixels; must divide the image's height and width.
    """

    def __init__(self, mask_patch_size: int):
        if mask_patch_size < 1:
            raise ValueError(f"mask_patch_size={mask_patch_size} must be at least 1 pixel")
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


def check_ratio(mask_ratio: float) -> None:
    """Raises ValueError for a ratio that is not a fraction."""
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio={mask_ratio} must lie between 0 and 1 (0.6 hides 60 %)")


def expand_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """(B, rows, cols) bool -> (B, 1, height, width) bool, each cell repeated; whole multiples only."""
    rows, cols = mask.shape[-2:]
    if height % rows or width % cols:
        raise ValueError(f"a mask of {rows}x{cols} cells cannot be repeated to {height}x{width}: not whole multiples")
    return repeat(mask, "b rows cols -> b 1 (rows p) (cols q)", p=height // rows, q=width // cols)


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

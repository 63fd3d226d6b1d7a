"""The decoder's mask token, and answers brought to the target's grid."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2mim.masking import expand_mask
from a2mim.masking.cells import places


def whole_ratio(decoder: str, stride: float, out_stride: int) -> int:
    """Target cells along each side of a map's cell.

    Args:
        decoder: its name, for the error.
        stride, out_stride: pixels per cell of the map and of the target.

    Raises:
        ValueError: a cell of the map does not hold a whole number of target cells.
    """
    ratio = stride / out_stride
    if ratio < 1 or ratio != int(ratio):
        raise ValueError(
            f"{decoder}: the last map has cells of {stride:g} px and the target of {out_stride} px, which is no whole"
            " number of target cells a side; choose another target or another last map"
        )
    return int(ratio)


def spread_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, rows, cols) bool -> (B, 1, h, w) bool: True where a feature cell lies wholly in hidden cells.

    A grid is as a rule a whole multiple of the mask's. Where it is not, the mask is stretched over it.
    """
    if all(side % cells == 0 for side, cells in zip(grid, mask.shape[1:], strict=True)):
        return expand_mask(mask, *grid)
    fine = expand_mask(mask, *(side * cells for side, cells in zip(grid, mask.shape[1:], strict=True)))
    return F.adaptive_avg_pool2d(fine.float(), grid) > 1 - 1e-4


def shown_cells(mask: Tensor, grid: tuple[int, int], hidden_cells: int | None = None) -> tuple[Tensor, Tensor]:
    """((B, h, w) bool, True where a cell of the grid is not hidden; (N,) the flat places of those in the batch).

    Args:
        mask: (B, rows, cols) bool.
        hidden_cells: how many cells of `mask` are True. None: they are counted, for which the host waits.
    """
    shown = ~spread_mask(mask, grid)[:, 0]
    whole = all(side % cells == 0 for side, cells in zip(grid, mask.shape[1:], strict=True))
    number = None
    if hidden_cells is not None and whole:
        number = (mask.numel() - hidden_cells) * shown.numel() // mask.numel()
    return shown, places(shown, number)


def insert_mask_token(features: Tensor, token: Tensor, mask: Tensor) -> Tensor:
    """Hidden cells of (B, D, h, w) take the token, (D,); what stood there does not matter, NaN included."""
    hidden = spread_mask(mask, (features.shape[2], features.shape[3]))
    return torch.where(hidden, token.to(features.dtype).view(1, -1, 1, 1), features)


def make_token(width: int, std: float = 0.02) -> nn.Parameter:
    """A mask token (width,) from a normal distribution that is cut at one deviation, as SparK's."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=std, a=-std, b=std))


def fit_grid(recon: Tensor, grid: tuple[int, int], ratio: float) -> Tensor:
    """(B, C, h, w) on the target's grid.

    Args:
        ratio: target cells per feature cell, along a side. Where it is whole, what overhangs the image is cropped, and
            cells that no feature reaches (ViT at 72 px: 4 cells of 16) are answered by 0. Below 1 the answer is
            averaged over each target cell, else resized bilinearly.
    """
    if ratio == int(ratio):
        if recon.shape[-2:] == grid:
            return recon
        return F.pad(recon, (0, grid[1] - recon.shape[-1], 0, grid[0] - recon.shape[-2]))  # below 0: a crop
    if ratio < 1:
        return F.adaptive_avg_pool2d(recon, grid)
    return F.interpolate(recon, grid, mode="bilinear", align_corners=False)

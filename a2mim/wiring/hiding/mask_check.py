"""What an encoder asks of a mask: its shape, cells that fit the maps, and equal counts where the network needs them.

Invariant: the host never waits for a device here. Counts are looked at on the CPU alone; masks that a run makes are
counted where they are drawn, see `a2mim.mim.MIM.draw`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def check_shape(name: str, mask: Tensor, batch: int) -> None:
    """Raises ValueError for a mask that is not (batch, rows, cols) bool.

    Args:
        name: of the network, for the error.
    """
    if mask.dtype != torch.bool or mask.ndim != 3 or len(mask) != batch:
        raise ValueError(
            f"{name} is given a mask of {tuple(mask.shape)} {mask.dtype} for {batch} images; expected is"
            f" ({batch}, rows, cols) torch.bool, True = hidden"
        )


def check_cells(name: str, mask: Tensor, img_size: tuple[int, int], grids: Sequence[tuple[int, int]]) -> None:
    """Raises ValueError where a sparse network has a map that is no whole multiple of the mask's grid.

    Args:
        name: of the network, for the error.
        img_size: (H, W) in pixels.
        grids: (h, w) of each map.
    """
    rows, cols = mask.shape[1:]
    for height, width in grids:
        if height % rows or width % cols or height // rows != width // cols:
            sides = img_size[0] // height, img_size[1] // width
            side = str(sides[0]) if sides[0] == sides[1] else f"{sides[0]}x{sides[1]}"
            raise ValueError(
                f"{name} runs on visible cells alone and has a map of {height}x{width} cells of {side} px, and the mask"
                f" has {rows}x{cols} cells for {img_size[0]}x{img_size[1]} pixels; hide='sparse' needs square cells of"
                f" whole map cells: set mask_patch_size to {side} or a multiple of it that divides the image"
            )


def counts_of(mask: Tensor) -> np.ndarray | None:
    """(B,) hidden cells of each image, by no operation of a device; None for a mask that is not on the CPU."""
    return mask.flatten(1).numpy().sum(1) if mask.device.type == "cpu" else None


def check_counts(name: str, hide: str, mask: Tensor, hidden_cells: int | None, equal: bool) -> None:
    """Raises ValueError where a mask on the CPU hides unequal counts, all that could be kept, or other than
    `hidden_cells`.

    Args:
        name: of the network, for the error.
        hide: "drop" or "sparse".
        hidden_cells: what the caller says is hidden in the whole batch; None: nothing is said.
        equal: whether every image must hide as many cells as the others.
    """
    counts = counts_of(mask)
    if counts is None:
        return
    least, most = int(counts.min()), int(counts.max())
    if equal and least != most:
        why = "" if hide == "drop" else ", because norms of this network take their statistics image by image"
        raise ValueError(
            f"{name} is given a mask that hides {least} to {most} cells of its {len(mask)} images; with hide={hide!r}"
            f" every image must have as many hidden cells as the others{why}"
        )
    if hide == "drop" and most == mask[0].numel():
        raise ValueError(
            f"{name} is given a mask that hides all {most} cells of an image; with hide='drop' at least one must stay"
            " visible: choose a lower mask_ratio or a smaller mask_patch_size"
        )
    if hidden_cells is not None and hidden_cells != int(counts.sum()):
        raise ValueError(
            f"{name} is given hidden_cells={hidden_cells} and a mask that hides {int(counts.sum())} cells in all; give"
            " the mask's own number, or leave hidden_cells out"
        )

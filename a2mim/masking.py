"""Which cells of an image are hidden, and what fills them. Everywhere: True = hidden."""

import math

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from a2mim.registry import MODELS


@MODELS.register_module()
class BlockMask:
    """Hides ceil(mask_ratio * cells) square cells of every image, uniformly without replacement.

    Args:
        mask_patch_size: side of a cell, pixels; must divide the image's height and width.
        mask_ratio: fraction hidden, in (0, 1).

    Source: A²MIM, https://arxiv.org/abs/2205.13943; the block of 32 px at 60 % is SimMIM's,
        https://arxiv.org/abs/2111.09886.
    """

    def __init__(self, mask_patch_size: int = 32, mask_ratio: float = 0.6):
        if mask_patch_size < 1:
            raise ValueError(f"mask_patch_size={mask_patch_size} must be at least 1 pixel")
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio={mask_ratio} must lie between 0 and 1 (0.6 hides 60 %)")
        self.mask_patch_size, self.mask_ratio = mask_patch_size, mask_ratio

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

    def __call__(self, batch_size: int, height: int, width: int, generator=None, device=None) -> Tensor:
        """Returns (batch_size, rows, cols) bool. `generator` must live on `device`; None draws from torch's own."""
        rows, cols = self.grid(height, width)
        hidden = math.ceil(self.mask_ratio * rows * cols)
        permutation = torch.rand(batch_size, rows * cols, generator=generator, device=device).argsort(dim=1)
        return rearrange(permutation < hidden, "b (rows cols) -> b rows cols", rows=rows)


def expand_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """(B, rows, cols) bool -> (B, 1, height, width) bool, each cell repeated; whole multiples only."""
    rows, cols = mask.shape[-2:]
    if height % rows or width % cols:
        raise ValueError(f"a mask of {rows}x{cols} cells cannot be repeated to {height}x{width}: not whole multiples")
    return repeat(mask, "b rows cols -> b 1 (rows p) (cols q)", p=height // rows, q=width // cols)


def fill_mean(images: Tensor, hidden: Tensor) -> Tensor:
    """Hidden pixels take the image's own mean colour: per image, per channel, over the whole crop, hidden pixels
    included.

    images: (B, C, H, W) normalised float; hidden: (B, 1, H, W) bool.
    """
    return torch.where(hidden, mean_colour(images), images)


def fill_none(images: Tensor, hidden: Tensor) -> Tensor:
    """Leaves the hidden pixels as they are: for methods whose token replaces what the network made of them."""
    return images


def mean_colour(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 1, 1), averaged in float32."""
    return reduce(images.float(), "b c h w -> b c 1 1", "mean").to(images.dtype)


FILLS = {"mean": fill_mean, "none": fill_none}

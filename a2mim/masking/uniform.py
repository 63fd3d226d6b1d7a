"""Cells that are hidden independently of their neighbours."""

import math

import torch
from einops import rearrange
from torch import Tensor

from a2mim.masking.cells import CellMask, check_ratio, some_hidden
from a2mim.registry import MODELS


@MODELS.register_module()
class BlockMask(CellMask):
    """Hides ceil(mask_ratio * cells) square cells of every image, uniformly without replacement.

    Where that would be all of several cells, one stays visible.

    Args:
        mask_patch_size: side of a cell, pixels; must divide the image's height and width.
        mask_ratio: fraction hidden, in (0, 1).

    Source: A²MIM, https://arxiv.org/abs/2205.13943; the block of 32 px at 60 % is SimMIM's,
        https://arxiv.org/abs/2111.09886.
    """

    reads_images = False

    def __init__(self, mask_patch_size: int = 32, mask_ratio: float = 0.6):
        super().__init__(mask_patch_size)
        check_ratio(mask_ratio)
        self.mask_ratio = mask_ratio

    def __call__(self, batch_size: int, height: int, width: int, generator=None, device=None, images=None) -> Tensor:
        """Returns (batch_size, rows, cols) bool. `generator` must live on `device`; None draws from torch's own."""
        rows, cols = self.grid(height, width)
        hidden = some_hidden(math.ceil(self.mask_ratio * rows * cols), rows * cols)
        permutation = torch.rand(batch_size, rows * cols, generator=generator, device=device).argsort(dim=1)
        return rearrange(permutation < hidden, "b (rows cols) -> b rows cols", rows=rows)


@MODELS.register_module()
class UniformGrid(CellMask):
    """Shows one cell of every 2 x 2 block and hides the other three.

    The four places within a block are shown equally often in every image (as nearly as the number of blocks allows), so
    no region of the image is hidden whole.

    Args:
        mask_patch_size: side of a cell, pixels; the image must hold an even number of cells each way.

    Source: uniform sampling of UM-MAE, https://arxiv.org/abs/2205.10063; its second token on a part of the visible
        cells is left out.
    """

    reads_images = False

    def __init__(self, mask_patch_size: int = 16):
        super().__init__(mask_patch_size)

    def __call__(self, batch_size: int, height: int, width: int, generator=None, device=None, images=None) -> Tensor:
        """Returns (batch_size, rows, cols) bool; exactly 3 of 4 cells are hidden."""
        rows, cols = self.grid(height, width)
        if rows % 2 or cols % 2:
            raise ValueError(
                f"UniformGrid needs an even number of cells each way, and {height}x{width} pixels hold {rows}x{cols}"
                f" cells of {self.mask_patch_size}; choose an image size that is a multiple of"
                f" {2 * self.mask_patch_size}, or another mask_patch_size"
            )
        blocks = rows * cols // 4
        order = torch.rand(batch_size, blocks, generator=generator, device=device).argsort(dim=1)
        names = torch.rand(batch_size, 4, generator=generator, device=device).argsort(dim=1)
        shown = names.gather(1, order % 4)  # the place that each block shows, 0 to 3
        visible = shown[..., None] == torch.arange(4, device=shown.device)
        return ~rearrange(visible, "b (h w) (p q) -> b (h p) (w q)", h=rows // 2, p=2)

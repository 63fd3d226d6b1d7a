"""I-JEPA's mask: a large visible context, without four blocks that are predicted from it."""

import torch
from torch import Tensor

from a2mim.masking.cells import CellMask, check_pair, keep_lowest, random_corner, rectangle, true_everywhere
from a2mim.registry import MODELS

TARGETS = 4  # blocks an image
LEAST = 10  # a context holds more cells than this
TRIES = 20  # places of the context that are tried before one target block is allowed to overlap


@MODELS.register_module()
class MultiBlock(CellMask):
    """Shows one large block without four smaller ones, and hides the rest.

    One batch draws the sizes, each image the places. Target blocks have a share of U(0.15, 0.2) of the cells and an
    aspect of U(0.75, 1.5), both from the same draw; they may overlap. The context is a square of U(0.85, 1) of the
    cells minus all targets. All contexts of a batch are cut to the smallest by leaving out random cells.

    Args:
        mask_patch_size: side of a cell, pixels; must divide the image's height and width.
        target_scale: least and greatest share of the cells in a target block, in (0, 1].
        target_aspect: least and greatest height / width of a target block, above 0.
        context_scale: least and greatest share of the cells in the context block, in (0, 1].

    Attributes:
        on_host: the number of tries depends on what was drawn, so masks are best made on the CPU.

    Source: I-JEPA, https://arxiv.org/abs/2301.08243. Differs from its code, which never puts a target on the last row
        and column, cuts contexts in raster order (the bottom is lost) and draws places from the global generator.
    """

    on_host = True
    reads_images = False

    def __init__(
        self,
        mask_patch_size: int = 16,
        target_scale: tuple[float, float] = (0.15, 0.2),
        target_aspect: tuple[float, float] = (0.75, 1.5),
        context_scale: tuple[float, float] = (0.85, 1.0),
    ):
        super().__init__(mask_patch_size)
        self.target_scale = check_pair("target_scale", target_scale, most=1)
        self.target_aspect = check_pair("target_aspect", target_aspect)
        self.context_scale = check_pair("context_scale", context_scale, most=1)

    def __call__(self, batch_size: int, height: int, width: int, generator=None, device=None, images=None) -> Tensor:
        """Returns (batch_size, rows, cols) bool, True outside the context."""
        return ~self.draw(batch_size, height, width, generator, device)[0]

    def draw(self, batch_size: int, height: int, width: int, generator=None, device=None) -> tuple[Tensor, Tensor]:
        """Returns (context (B, rows, cols) bool, True = visible; targets (B, 4, rows, cols) bool, True = predicted)."""
        rows, cols = self.grid(height, width)
        if min(rows, cols) < 4:
            raise ValueError(
                f"MultiBlock needs at least 4x4 cells, and {height}x{width} pixels hold {rows}x{cols} cells of"
                f" {self.mask_patch_size}; choose a smaller mask_patch_size"
            )

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        sizes = uniform(2)
        tall, wide = _sides(sizes[0], self.target_scale, self.target_aspect, rows, cols)
        targets = _place(uniform(batch_size * TARGETS, 2), tall, wide, rows, cols)
        targets = targets.view(batch_size, TARGETS, rows, cols)
        tall, wide = _sides(sizes[1], self.context_scale, (1.0, 1.0), rows, cols)
        context = torch.zeros(batch_size, rows, cols, dtype=torch.bool, device=device)
        for avoided in range(TARGETS, -1, -1):
            allowed = ~targets[:, :avoided].any(dim=1)
            for _ in range(TRIES):
                proposed = _place(uniform(batch_size, 2), tall, wide, rows, cols) & allowed
                small = context.flatten(1).sum(1) <= min(LEAST, rows * cols // 4)
                context = torch.where(small[:, None, None], proposed, context)
                small = context.flatten(1).sum(1) <= min(LEAST, rows * cols // 4)
                if true_everywhere(~small):
                    break
            else:
                continue
            break
        return keep_lowest(uniform(batch_size, rows, cols), context, context.flatten(1).sum(1).min()), targets


def _sides(uniform: Tensor, scale, aspect, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Height and width in cells, 0-d; both shorter than the grid. Scale and aspect come from one draw; the area is a
    whole number of cells.
    """
    area = (rows * cols * (scale[0] + uniform * (scale[1] - scale[0]))).floor()
    ratio = aspect[0] + uniform * (aspect[1] - aspect[0])
    tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    return tall.clamp(1, rows - 1).long(), wide.clamp(1, cols - 1).long()


def _place(uniform: Tensor, tall: Tensor, wide: Tensor, rows: int, cols: int) -> Tensor:
    """Blocks of one size at random places; uniform: (N, 2) in [0, 1) -> (N, rows, cols) bool."""
    top, left = random_corner(rows - tall, uniform[:, 0]), random_corner(cols - wide, uniform[:, 1])
    return rectangle(top, left, tall, wide, rows, cols)

"""Masks made of rectangles: several hidden ones (BEiT), or one visible one (CAPI)."""

import math
from typing import Any

import torch
from torch import Tensor

from a2mim.masking.cells import (
    CellMask,
    check_ratio,
    keep_lowest,
    random_corner,
    rectangle,
    some_hidden,
    true_everywhere,
)
from a2mim.registry import MODELS, check_whole, is_number

TRIES = 10  # proposals in a row that may fail before an image counts as stuck
ROUNDS = 16  # proposals between two looks at whether any image still needs one


@MODELS.register_module()
class BEiTBlocks(CellMask):
    """Hides rectangles of random size and shape until round(mask_ratio * cells) cells of every image are hidden.

    Each proposal has an area from U(min_cells, cells still to hide) and a log-uniform aspect, both sides shorter than
    the grid. It is taken if it hides at least one new cell and not too many. After ten failures in a row the rest is
    filled up with single cells.

    Args:
        mask_patch_size: side of a cell, pixels; must divide the image's height and width.
        mask_ratio: fraction hidden, in (0, 1).
        min_cells: least area of a proposal, cells. Where fewer are to be hidden, few proposals fit and most hidden
            cells are single ones: choose a smaller number for small images.
        min_aspect: least height / width of a proposal, in (0, 1]; the greatest is its inverse.

    Attributes:
        on_host: the number of rounds depends on what was drawn, so masks are best made on the CPU.

    Source: BEiT, https://arxiv.org/abs/2106.08254. Differs from its code, which stops short of the count when it is
        stuck; and from mmpretrain's, which never hides the last row and column.
    """

    on_host = True
    reads_images = False

    def __init__(
        self, mask_patch_size: int = 16, mask_ratio: float = 0.4, min_cells: int = 16, min_aspect: float = 0.3
    ):
        super().__init__(mask_patch_size)
        check_ratio(mask_ratio)
        check_whole("BEiTBlocks", min_cells=min_cells)
        if not is_number(min_aspect) or not 0 < min_aspect <= 1:
            raise ValueError(f"min_aspect={min_aspect!r} must be a number above 0 and at most 1")
        self.mask_ratio, self.min_cells, self.min_aspect = mask_ratio, min_cells, min_aspect

    def __call__(self, batch_size: int, height: int, width: int, generator=None, device=None, images=None) -> Tensor:
        """Returns (batch_size, rows, cols) bool. `generator` must live on `device`; None draws from torch's own."""
        rows, cols = self.grid(height, width)
        count = some_hidden(round(self.mask_ratio * rows * cols), rows * cols)
        mask = torch.zeros(batch_size, rows, cols, dtype=torch.bool, device=device)
        failures = torch.zeros(batch_size, dtype=torch.long, device=device)
        done = rounds = 0
        while not done and rounds < TRIES * count:
            for _ in range(ROUNDS):
                uniform = torch.rand(batch_size, 4, generator=generator, device=device)
                mask, failures = self._propose(mask, failures, count, uniform)
            rounds += ROUNDS
            done = true_everywhere((failures >= TRIES) | (mask.flatten(1).sum(1) == count))
        scores = torch.rand(batch_size, rows, cols, generator=generator, device=device)
        return mask | keep_lowest(scores, ~mask, count - mask.flatten(1).sum(1))

    def _propose(self, mask: Tensor, failures: Tensor, count: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """One proposal an image. uniform: (B, 4) in [0, 1): area, aspect, top, left."""
        rows, cols = mask.shape[1:]
        left_to_hide = count - mask.flatten(1).sum(1)
        area = self.min_cells + uniform[:, 0] * (left_to_hide - self.min_cells)
        aspect = torch.exp((2 * uniform[:, 1] - 1) * math.log(self.min_aspect))
        tall, wide = ((area.clamp_min(0) * a).sqrt().round().long() for a in (aspect, 1 / aspect))
        fits = (tall < rows) & (wide < cols)
        top = random_corner((rows - tall).clamp_min(0), uniform[:, 2])
        left = random_corner((cols - wide).clamp_min(0), uniform[:, 3])
        more = mask | rectangle(top, left, tall, wide, rows, cols)
        new = more.flatten(1).sum(1) - mask.flatten(1).sum(1)
        taken = fits & (new > 0) & (new <= left_to_hide) & (failures < TRIES)
        failures = torch.where(taken, 0, failures + 1)
        # an image that was stuck stays stuck
        return torch.where(taken[:, None, None], more, mask), failures


@MODELS.register_module()
class InverseBlock(CellMask):
    """Shows one rectangle and hides the rest: cells - int(cells * mask_ratio) are visible in every image.

    The rectangle has a log-uniform aspect from 1/2 to 2, clipped so that it fits. It is cut to the exact count in
    raster order, and rolled over the edges of the image, so that all cells are visible equally often.

    Args:
        mask_patch_size: side of a cell, pixels; must divide the image's height and width.
        mask_ratio: fraction hidden, in (0, 1).
        roll: whether the rectangle may reach over the edges; without it, cells in the middle are visible more often.

    Source: CAPI, https://arxiv.org/abs/2502.08769, inverse block with roll.
    """

    reads_images = False

    def __init__(self, mask_patch_size: int = 16, mask_ratio: float = 0.65, roll: bool = True):
        super().__init__(mask_patch_size)
        check_ratio(mask_ratio)
        if not isinstance(roll, bool):
            raise ValueError(f"roll={roll!r} must be True or False")
        self.mask_ratio, self.roll = mask_ratio, roll

    def __call__(self, batch_size: int, height: int, width: int, generator=None, device=None, images=None) -> Tensor:
        """Returns (batch_size, rows, cols) bool. `generator` must live on `device`; None draws from torch's own."""
        rows, cols = self.grid(height, width)
        cells = rows * cols
        visible = cells - some_hidden(int(cells * self.mask_ratio), cells)
        uniform = torch.rand(batch_size, 3, generator=generator, device=device)
        if not visible:  # an image of one cell
            return torch.ones(batch_size, rows, cols, dtype=torch.bool, device=device)
        narrowest, widest = math.log(visible / cols / cols), math.log(rows * rows / visible)  # that fit
        least, most = (min(max(math.log(aspect), narrowest), widest) for aspect in (0.5, 2))
        aspect = torch.exp(least + uniform[:, 0] * (most - least))
        tall = (visible * aspect).sqrt().ceil().long().clamp(1, rows)
        wide = (visible / aspect).sqrt().ceil().long().clamp(max=cols)
        wide = torch.maximum(wide, (visible + tall - 1) // tall)
        free: tuple[Any, Any] = (rows, cols) if self.roll else (rows - tall + 1, cols - wide + 1)
        top, left = (random_corner(number - 1, uniform[:, axis]) for number, axis in zip(free, (1, 2), strict=True))
        y = (torch.arange(rows, device=device) - top[:, None]) % rows  # (B, rows), from the rectangle's corner
        x = (torch.arange(cols, device=device) - left[:, None]) % cols
        inside = (y < tall[:, None])[:, :, None] & (x < wide[:, None])[:, None, :]
        order = y[:, :, None] * wide[:, None, None] + x[:, None, :]  # raster order within the rectangle
        return ~(inside & (order < visible))


@MODELS.register_module()
class InverseSquares(CellMask):
    """Shows small squares around random centres and hides the rest; int(cells * (1 - mask_ratio)) cells stay visible.

    int(cells * (1 - mask_ratio + adjust) / side^2) centres are drawn with replacement. Squares reach no further than
    the grid. What is visible beyond the count is hidden at random, what lacks is shown at random, so every image shows
    as many cells.

    Args:
        mask_patch_size: side of a cell, pixels; must divide the image's height and width.
        mask_ratio: fraction hidden, in (0, 1).
        side: of a square, cells.
        adjust: more centres, as a share of the cells, because squares overlap.
        masks: different masks of each image, which share one target; above 1 the answer is (B, masks, rows, cols).

    Source: data2vec 2.0, https://arxiv.org/abs/2212.07525, inverse block masks, 16 for each image.
    """

    def __init__(
        self,
        mask_patch_size: int = 16,
        mask_ratio: float = 0.8,
        side: int = 3,
        adjust: float = 0.07,
        masks: int = 1,
    ):
        super().__init__(mask_patch_size)
        check_ratio(mask_ratio)
        check_whole("InverseSquares", side=side, masks=masks)
        if side % 2 == 0:
            raise ValueError(f"side={side} must be odd: a square has a cell as its centre")
        if not is_number(adjust) or not 0 <= adjust < mask_ratio:
            raise ValueError(f"adjust={adjust!r} must be a number of at least 0 and below mask_ratio={mask_ratio}")
        self.mask_ratio, self.side, self.adjust, self.masks = mask_ratio, side, adjust, masks

    def __call__(self, batch_size: int, height: int, width: int, generator=None, device=None, images=None) -> Tensor:
        """Returns (batch_size, rows, cols) bool. `generator` must live on `device`; None draws from torch's own."""
        rows, cols = self.grid(height, width)
        cells, number, half = rows * cols, batch_size * self.masks, self.side // 2
        count = cells - some_hidden(cells - int(cells * (1 - self.mask_ratio)), cells)
        centres = max(1, int(cells * (1 - self.mask_ratio + self.adjust) / self.side**2))
        drawn = torch.rand(number, centres, 2, generator=generator, device=device)
        y, x = (random_corner(n - 1, drawn[..., i]) for i, n in ((0, rows), (1, cols)))
        near = [
            (torch.arange(n, device=device) - centre[..., None]).abs() <= half for centre, n in ((y, rows), (x, cols))
        ]
        visible = (near[0][..., None] & near[1][..., None, :]).any(dim=1)
        scores = torch.rand(number, rows, cols, generator=generator, device=device)
        # visible cells come first: they keep their place where there are enough of them, others follow where not
        shown = keep_lowest(torch.where(visible, scores / 2, (1 + scores) / 2), torch.ones_like(visible), count)
        return ~shown if self.masks == 1 else ~shown.view(batch_size, self.masks, rows, cols)

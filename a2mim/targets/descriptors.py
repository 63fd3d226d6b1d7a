"""Hand-made descriptors of cells: histograms of gradients and of local binary patterns.

Both are computed from whole pixel levels, whatever the recipe's normalisation: a rounding error of the normalisation
would turn flat cells into unit vectors of noise, and move gradients between bins.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD
from a2mim.registry import MODELS, is_whole
from a2mim.targets.precision import full_precision

CELL = 8  # pixels, side of a cell, unless told
BINS = 9  # of the gradient's direction, over 180 degrees


class _Descriptor:
    """Takes the recipe's normalisation, to undo it. stride: pixels, side of a cell. largest: of the largest cell."""

    stride = largest = CELL

    def __init__(self, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        self.mean, self.std = tuple(mean), tuple(std)
        self._kept: dict[tuple, tuple[Tensor, Tensor]] = {}  # both as tensors, by device

    def attach(self, encoder, mean, std) -> None:
        """Takes the normalisation to undo."""
        self.mean, self.std = tuple(mean), tuple(std)

    def levels(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> float32 whole numbers 0..65,535; an 8-bit level v is 257 v. Integer images keep theirs."""
        height, width = images.shape[-2:]
        if height % self.largest or width % self.largest:
            raise ValueError(
                f"{type(self).__name__} has cells of {self.largest} px, which do not divide {height}x{width} pixels;"
                f" choose an image size that is a multiple of {self.largest}"
            )
        if not images.is_floating_point():
            return images.float() * (257 if images.dtype == torch.uint8 else 1)
        mean, std = self._normalisation(images.device)
        if len(mean) != images.shape[1]:
            raise ValueError(
                f"{type(self).__name__} was given {images.shape[1]} channels and the mean and std of {len(mean)};"
                " give mean and std one value a channel"
            )
        pixels = images.float() * std + mean
        eight = (pixels * 255).round()
        exact = (pixels * 255 - eight).abs() < 1e-3  # float32 after normalising and back errs by 1e-4 of a level
        return torch.where(exact, eight * 257, (pixels * 65535).round())

    def _normalisation(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation, (C, 1, 1) each; they travel to a device once."""
        key = self.mean, self.std, device
        if key not in self._kept:
            mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (self.mean, self.std))
            self._kept = {key: (mean, std)}
        return self._kept[key]


@MODELS.register_module()
class HOG(_Descriptor):
    """Histograms of oriented gradients: 9 unsigned directions for each channel and cell of 8 x 8 px, at unit length.

    Gradients are Sobel's on the image reflected by one pixel. A pixel's magnitude goes to one bin, without sharing
    between neighbours. A flat cell is 0. Channel 9 c + k is bin k of image channel c. PixelShuffle(2) of the 27
    channels is MaskFeat's vector of 108 numbers for a patch of 16 px.

    Args:
        mean, std: of the images given, per channel; `MIM` fills in its own.
        cells: pixels, side of a cell. Several make as many scales, the finest first: the channels of each behind those
            of the one before, all on the grid of the finest, where a coarse cell is repeated. So a coarse cell weighs
            in a loss over hidden cells as much as its hidden share.

    Raises:
        ValueError: cells that are not whole numbers above 0, each a multiple of the first.

    Source: MaskFeat, https://arxiv.org/abs/2112.09133 (its code, without mmpretrain's Gaussian window). Several scales:
        LocalMIM, https://arxiv.org/abs/2303.05251, with cells of 4, 8, 16 and 32 px.
    """

    def __init__(self, mean=IMAGENET_MEAN, std=IMAGENET_STD, cells: int | Sequence[int] = CELL):
        super().__init__(mean, std)
        sides = list(cells) if isinstance(cells, Sequence) else [cells]
        if not sides or not all(map(is_whole, sides)) or any(side % sides[0] for side in sides):
            raise ValueError(
                f"HOG: cells={cells!r} must be whole numbers of pixels above 0, each a multiple of the first, such as"
                " 8 or [4, 8, 16, 32]"
            )
        self.cells = sides
        self.stride, self.largest = self.cells[0], math.lcm(*self.cells)

    @property
    def channels(self) -> int:
        """9 for each channel of the images and each scale."""
        return BINS * len(self.mean) * len(self.cells)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised float, or integers -> (B, 9 C scales, H / s, W / s) float32, with s px the finest
        cell.
        """
        with full_precision(images):
            levels = F.pad(self.levels(images), (1, 1, 1, 1), mode="reflect")
            smooth_rows = levels[:, :, :-2] + 2 * levels[:, :, 1:-1] + levels[:, :, 2:]
            smooth_cols = levels[..., :-2] + 2 * levels[..., 1:-1] + levels[..., 2:]
            across = (smooth_rows[..., :-2] - smooth_rows[..., 2:]) / (257 * 256)  # in units of 1/256, MaskFeat's
            down = (smooth_cols[:, :, :-2] - smooth_cols[:, :, 2:]) / (257 * 256)
            magnitude = (across.square() + down.square()).sqrt()
            bins = (torch.atan2(across, down) / math.pi * BINS).floor().remainder(BINS)
            finest = [_cell_sums(torch.where(bins == k, magnitude, 0.0), self.stride) for k in range(BINS)]
            return torch.cat([self._scale(finest, cell // self.stride) for cell in self.cells], dim=1)

    def _scale(self, finest: list[Tensor], times: int) -> Tensor:
        """Sums of each bin (B, C, h, w) -> (B, 9 C, h, w) of cells `times` as long, each repeated over its place."""
        sums = torch.stack([_cell_sums(one, times) for one in finest] if times > 1 else finest, dim=2)
        unit = F.normalize(sums, dim=2).flatten(1, 2)
        return unit.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3) if times > 1 else unit


@MODELS.register_module()
class LBP(_Descriptor):
    """Histograms of local binary patterns of the grey image, for each cell of 8 x 8 px, at unit length.

    A pixel's pattern is the ring of its eight neighbours, each at least as bright as the pixel or not. Rings with at
    most two changes are named by how many are bright (0 to 8), all others share the tenth name; so the name does not
    change as the image turns. Grey is the sum of the channels; the image is reflected by one pixel.

    Args:
        mean, std: of the images given, per channel; `MIM` fills in its own.

    Source: Ojala et al. 2002, rotation-invariant uniform patterns (P = 8, R = 1, square ring).
    """

    channels = 10

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised float, or integers -> (B, 10, H / 8, W / 8) float32."""
        with full_precision(images):
            grey = self.levels(images).sum(dim=1, keepdim=True)
            padded = F.pad(grey, (1, 1, 1, 1), mode="reflect")
            height, width = grey.shape[-2:]
            ring = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]  # around the pixel, in order
            bright = torch.cat([padded[..., y : y + height, x : x + width] >= grey for y, x in ring], dim=1)
            changes = (bright ^ bright.roll(1, dims=1)).sum(dim=1)
            name = torch.where(changes <= 2, bright.sum(dim=1), 9)
            sums = [_cell_sums((name == k).float()[:, None], CELL) for k in range(self.channels)]
            return F.normalize(torch.cat(sums, dim=1), dim=1)


def _cell_sums(values: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H / side, W / side)."""
    return reduce(values, "b c (h p) (w q) -> b c h w", "sum", p=side, q=side)

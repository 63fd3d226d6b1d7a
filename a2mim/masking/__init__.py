"""Which cells of an image are hidden, and what fills them. Everywhere: True = hidden.

A mask part is called as masking(batch_size, height, width, generator=None, device=None, images=None) and returns
(B, rows, cols) bool, with as many True in every image. What it returns follows from the generator alone, so a resumed
run draws the same masks. A part that looks at the images takes `images`, (B, C, H, W) normalised; one that does not may
leave the argument out.
"""

from a2mim.masking.blocks import BEiTBlocks, InverseBlock, InverseSquares
from a2mim.masking.cells import CellMask, expand_mask
from a2mim.masking.fill import FILLS, fill_mean, fill_none, make_fill, mean_colour, median_colour
from a2mim.masking.multiblock import MultiBlock
from a2mim.masking.uniform import BlockMask, UniformGrid

__all__ = [
    "FILLS",
    "BEiTBlocks",
    "BlockMask",
    "CellMask",
    "InverseBlock",
    "InverseSquares",
    "MultiBlock",
    "UniformGrid",
    "expand_mask",
    "fill_mean",
    "fill_none",
    "make_fill",
    "mean_colour",
    "median_colour",
]

"""Exactly k cells of every image are hidden, uniformly, and filled with that image's own mean colour."""

import math

import pytest
import torch

from a2mim.masking import (
    BEiTBlocks,
    BlockMask,
    InverseBlock,
    InverseSquares,
    MultiBlock,
    UniformGrid,
    expand_mask,
    fill_mean,
    fill_none,
    mean_colour,
)


@pytest.mark.parametrize(
    ("side", "cell", "ratio", "cells", "hidden"),
    [(224, 32, 0.6, 49, 30), (192, 32, 0.6, 36, 22), (64, 8, 0.75, 64, 48), (32, 32, 0.6, 1, 1), (6, 1, 0.5, 36, 18)],
)
def test_exactly_ceil_of_ratio_times_cells_are_hidden_in_every_image(side, cell, ratio, cells, hidden):
    mask = BlockMask(cell, ratio)(5, side, side)
    assert mask.dtype == torch.bool
    assert mask.shape == (5, side // cell, side // cell)
    assert mask[0].numel() == cells
    assert mask.sum(dim=(1, 2)).tolist() == [hidden] * 5
    assert hidden == math.ceil(ratio * cells)


def test_rows_and_columns_follow_height_and_width():
    assert BlockMask(16, 0.5)(2, 32, 96).shape == (2, 2, 6)


def test_every_cell_is_hidden_equally_often_and_pairs_are_independent():
    mask = BlockMask(8, 0.5)(4000, 32, 32, generator=torch.Generator().manual_seed(0)).flatten(1).double()
    assert (mask.mean(dim=0) - 0.5).abs().max() < 4 * 0.5 / 4000**0.5
    together = (mask.T @ mask / 4000)[~torch.eye(16, dtype=torch.bool)]
    assert (together - 0.5 * 7 / 15).abs().max() < 0.04  # without replacement: 8/16 * 7/15


def test_the_same_generator_state_draws_the_same_mask_and_images_differ():
    first, second = (BlockMask(8)(4, 64, 64, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_a_cell_that_does_not_divide_the_image_is_refused_with_cells_that_do():
    with pytest.raises(ValueError, match=r"mask_patch_size=32 does not divide the image of 100x100.* 25 or 20"):
        BlockMask(32)(1, 100, 100)


@pytest.mark.parametrize(("side", "hidden"), [(64, 15), ((16, 48), 2), (16, 1)])
def test_one_of_several_cells_stays_visible_whatever_the_ratio(side, hidden):
    height, width = (side, side) if isinstance(side, int) else side
    for part in (BlockMask(16, 0.97), BEiTBlocks(16, 0.99), InverseBlock(16, 0.97), InverseSquares(16, 0.97)):
        assert part(3, height, width).flatten(1).sum(1).tolist() == [hidden] * 3


@pytest.mark.parametrize("ratio", [0, 1, 60, -0.1, "x", "0.5", None, True, float("nan"), [0.5]])
def test_a_ratio_outside_0_and_1_is_refused(ratio):
    for part in (BlockMask, BEiTBlocks, InverseBlock, InverseSquares):
        with pytest.raises(ValueError, match=r"mask_ratio=.* must be a number between 0 and 1"):
            part(32, ratio)


@pytest.mark.parametrize("cell", [0, -16, 16.5, "16", None, True])
def test_a_cell_that_is_no_whole_number_of_pixels_is_refused(cell):
    for part in (BlockMask, UniformGrid, BEiTBlocks, InverseBlock, InverseSquares, MultiBlock):
        with pytest.raises(ValueError, match=r"mask_patch_size=.* must be a whole number of at least 1"):
            part(cell)


def test_expanding_repeats_each_cell_and_asks_for_whole_multiples():
    mask = torch.tensor([[[True, False], [False, True]]])
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).bool()[None, None]
    assert torch.equal(expand_mask(mask, 4, 4), expected)
    with pytest.raises(ValueError, match="whole multiples"):
        expand_mask(mask, 5, 4)


def test_hidden_pixels_take_the_mean_over_the_whole_crop_and_visible_ones_stay():
    images = torch.randn(3, 2, 8, 8)
    hidden = expand_mask(BlockMask(4, 0.5)(3, 8, 8), 8, 8)
    filled = fill_mean(images, hidden)
    for b in range(3):
        for c in range(2):
            mean = images[b, c].double().mean().float()
            for y in range(8):
                for x in range(8):
                    expected = mean if hidden[b, 0, y, x] else images[b, c, y, x]
                    assert torch.isclose(filled[b, c, y, x], expected, atol=1e-6)


def test_the_mean_colour_of_half_precision_images_is_taken_in_float32():
    images = torch.full((1, 1, 256, 256), 3.0, dtype=torch.float16)  # a float16 sum would overflow to infinity
    assert mean_colour(images).item() == 3.0
    assert mean_colour(images).dtype == torch.float16


def test_fill_none_leaves_the_images_alone():
    images = torch.randn(1, 3, 4, 4)
    assert fill_none(images, torch.ones(1, 1, 4, 4, dtype=torch.bool)) is images

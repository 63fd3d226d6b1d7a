"""Rectangular masks: exact counts in every image, every cell within reach, a function of the generator alone."""

import math

import pytest
import torch

from a2mim.masking import BEiTBlocks, InverseBlock, InverseSquares, MultiBlock, UniformGrid
from a2mim.masking.multiblock import _sides

PARTS = [BEiTBlocks(16, 78 / 196), BEiTBlocks(16, 120 / 196), InverseBlock(16, 0.65), UniformGrid(16), MultiBlock(16)]
PARTS.append(InverseSquares(16))


def draws(part, number, side=224, width=None, seed=0):
    return part(number, side, width or side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("part", PARTS, ids=lambda p: type(p).__name__)
def test_every_image_has_as_many_hidden_cells_and_the_generator_decides(part):
    mask = draws(part, 64)
    assert mask.dtype == torch.bool
    assert mask.shape == (64, 14, 14)
    assert len(mask.flatten(1).sum(1).unique()) == 1
    assert torch.equal(mask, draws(part, 64))
    assert not torch.equal(mask, draws(part, 64, seed=1))
    assert not torch.equal(mask[0], mask[1])
    torch.manual_seed(0)
    assert torch.equal(mask, draws(part, 64))  # nothing is drawn from the global generator


@pytest.mark.parametrize(
    ("part", "side", "hidden"),
    [
        (BEiTBlocks(16, 0.4), 224, 78),
        (BEiTBlocks(16, 75 / 196), 224, 75),
        (BEiTBlocks(14, 105 / 256), 224, 105),
        (BEiTBlocks(16, 120 / 196), 224, 120),
        (BEiTBlocks(16, 0.5), 32, 2),
        (InverseBlock(14, 0.65), 224, 166),
        (UniformGrid(16), 224, 147),
        (InverseSquares(16, 0.8), 224, 157),
        (InverseSquares(16, 0.75), 64, 12),
    ],
)
def test_the_count_is_the_paper_s(part, side, hidden):
    assert draws(part, 50, side).flatten(1).sum(1).tolist() == [hidden] * 50


@pytest.mark.parametrize("part", PARTS, ids=lambda p: type(p).__name__)
def test_first_and_last_rows_and_columns_are_hidden_equally_often(part):
    share = torch.stack([draws(part, 250, seed=s).float().mean(0) for s in range(16)]).mean(0)
    edges = torch.stack([share[0].mean(), share[-1].mean(), share[:, 0].mean(), share[:, -1].mean()])
    assert edges.max() - edges.min() < 0.03
    assert share.min() > 0.02
    assert torch.allclose(share, share.flip(0), atol=0.06)


def test_a_rolled_inverse_block_shows_every_cell_equally_often_and_is_one_block_on_the_torus():
    part = InverseBlock(14, 0.65)
    visible = ~draws(part, 4000)
    assert (visible.float().mean(0) - 90 / 256).abs().max() < 4 * math.sqrt(90 / 256 * 166 / 256 / 4000)
    for cells in visible[:50]:
        rows, cols = int(cells.any(1).sum()), int(cells.any(0).sum())
        assert 7 <= rows <= 14
        assert 7 <= cols <= 14
        assert rows * cols >= 90
    unrolled = draws(InverseBlock(14, 0.65, roll=False), 500)
    assert (~unrolled).float().mean(0)[7, 7] > 2 * (~unrolled).float().mean(0)[0, 0]


def test_any_grid_takes_an_inverse_block():
    for height, width in ((64, 1024), (1024, 64), (32, 32)):
        mask = draws(InverseBlock(16, 0.5), 20, height, width)
        cells = height * width // 256
        assert mask.flatten(1).sum(1).tolist() == [cells - (cells - cells // 2)] * 20


def test_each_block_of_four_shows_one_cell_and_the_four_places_come_equally_often():
    mask = draws(UniformGrid(16), 30, 256)
    blocks = mask.view(30, 8, 2, 8, 2).transpose(2, 3).reshape(30, 64, 4)
    assert (blocks.sum(-1) == 3).all()
    assert ((~blocks).sum(1) == 16).all()
    with pytest.raises(ValueError, match="even number of cells each way, and 240x240 pixels hold 15x15"):
        draws(UniformGrid(16), 1, 240)


def test_beit_blocks_are_rectangles_of_a_certain_size():
    """Without the rule of blocks, the mean number of hidden neighbours would be the mask ratio."""
    mask = draws(BEiTBlocks(16, 0.4), 500).float()
    pairs = (mask[:, 1:] * mask[:, :-1]).sum() / mask[:, 1:].sum()
    assert pairs > 0.75


def test_context_and_targets_are_disjoint_and_sizes_are_i_jepa_s():
    part = MultiBlock(16)
    sizes = set()
    for seed in range(40):
        context, targets = part.draw(16, 224, 224, torch.Generator().manual_seed(seed))
        assert targets.shape == (16, 4, 14, 14)
        assert not (context[:, None] & targets).any()
        counts = context.flatten(1).sum(1)
        assert counts.min() == counts.max() > 10
        heights = targets.any(3).sum(2).unique().tolist()
        widths = targets.any(2).sum(2).unique().tolist()
        assert len(heights) == len(widths) == 1
        assert 0.13 < heights[0] * widths[0] / 196 < 0.22
        sizes.add((heights[0], widths[0]))
        assert context.any(2).sum(1).max() <= 13
    assert sizes == {(5, 6), (6, 6), (6, 5), (7, 5), (8, 5)}  # those of the official code on this grid


@pytest.mark.parametrize(("rows", "cols"), [(14, 14), (16, 16), (7, 10), (12, 30)])
def test_sizes_of_target_blocks_are_those_of_i_jepa_s_code(rows, cols):
    """Its area is a whole number of cells, and its sides are rounded as Python does."""
    for step in range(200):
        uniform = torch.tensor((step + 0.5) / 200, dtype=torch.float64)
        area, aspect = int(rows * cols * (0.15 + float(uniform) * 0.05)), 0.75 + float(uniform) * 0.75
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        found = _sides(uniform, (0.15, 0.2), (0.75, 1.5), rows, cols)
        assert (int(found[0]), int(found[1])) == (min(tall, rows - 1), min(wide, cols - 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BEiTBlocks(16, 1.2), "mask_ratio=1.2"),
        (lambda: BEiTBlocks(16, 0.4, min_cells=0), "min_cells=0"),
        (lambda: InverseBlock(0), "mask_patch_size=0"),
        (lambda: MultiBlock(32)(1, 96, 96), "needs at least 4x4 cells"),
        (lambda: MultiBlock(32)(1, 100, 100), "does not divide"),
        (lambda: BEiTBlocks(16, min_cells=2.5), "min_cells=2.5 must be a whole number"),
        (lambda: BEiTBlocks(16, min_aspect="x"), "min_aspect='x' must be a number above 0 and at most 1"),
        (lambda: BEiTBlocks(16, min_aspect=0), "min_aspect=0"),
        (lambda: InverseBlock(16, roll="no"), "roll='no' must be True or False"),
        (lambda: InverseSquares(16, side=2), "side=2 must be odd"),
        (lambda: InverseSquares(16, side="3"), "side='3' must be a whole number"),
        (lambda: InverseSquares(16, masks=0), "masks=0 must be a whole number"),
        (lambda: InverseSquares(16, adjust=None), "adjust=None must be a number"),
        (lambda: InverseSquares(16, adjust=0.9), "adjust=0.9 .* below mask_ratio=0.8"),
        (lambda: MultiBlock(16, target_scale=(0.9, 0.1)), "target_scale=.0.9, 0.1. must be two numbers above 0 and at"),
        (lambda: MultiBlock(16, target_scale=(0, 5)), "at most 1, the smaller one first"),
        (lambda: MultiBlock(16, target_scale=0.2), "target_scale=0.2 must be two numbers"),
        (lambda: MultiBlock(16, target_scale="ab"), "target_scale='ab' must be two numbers"),
        (lambda: MultiBlock(16, context_scale=(2, 3)), "context_scale=.2, 3. must be two numbers"),
        (lambda: MultiBlock(16, context_scale=(0.5, 0.6, 0.7)), "context_scale"),
        (lambda: MultiBlock(16, target_aspect=(-1, 1)), "target_aspect=.-1, 1. must be two numbers above 0, the"),
        (lambda: MultiBlock(16, target_aspect=(1, float("inf"))), "target_aspect"),
    ],
)
def test_what_cannot_be_is_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_visible_squares_are_compact_and_several_masks_of_an_image_differ():
    mask = draws(InverseSquares(16, 0.8, masks=4), 50)
    assert mask.shape == (50, 4, 14, 14) and (~mask).flatten(2).sum(2).unique().tolist() == [39]
    assert all(not torch.equal(mask[b, 0], mask[b, i]) for b in range(50) for i in (1, 2, 3))
    one = draws(InverseSquares(16, 0.8), 200)
    neighbours = ~one & (~one).roll(1, 2)  # of independent cells a fifth would be visible beside a visible one
    assert float(neighbours[:, :, 1:].sum() / (~one)[:, :, 1:].sum()) > 0.5
    with pytest.raises(ValueError, match="side=2 must be odd"):
        InverseSquares(16, side=2)

import pytest
import torch

from a2mim.masking.cells import pool_mask


@pytest.mark.parametrize(
    ("img_size", "cells", "grid", "stride"),
    [
        ((64, 64), (2, 2), (4, 4), 16),
        ((64, 96), (4, 6), (2, 3), 32),
        ((72, 72), (3, 3), (5, 5), 16),
        ((60, 60), (5, 5), (20, 20), 3),
        ((72, 72), (3, 3), (4, 4), 16),
    ],
)
def test_a_pooled_mask_is_the_hidden_share_of_each_cells_pixels(img_size, cells, grid, stride):
    mask = torch.rand(2, *cells, generator=torch.Generator().manual_seed(0)) < 0.5
    pixels = mask.repeat_interleave(img_size[0] // cells[0], 1).repeat_interleave(img_size[1] // cells[1], 2).float()
    expected = torch.empty(2, *grid)
    for i in range(grid[0]):
        for j in range(grid[1]):
            inside = pixels[:, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
            expected[:, i, j] = inside.mean((1, 2))
    pooled = pool_mask(mask, grid, (stride, stride), img_size)
    torch.testing.assert_close(pooled.float(), expected)
    aligned = all(size // n % stride == 0 and size % stride == 0 for size, n in zip(img_size, cells, strict=True))
    assert (pooled.dtype == torch.bool) == aligned

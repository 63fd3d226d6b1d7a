"""The pictures show what they say they show."""

import mmcv
import numpy as np
import pytest
import torch

from a2mim.analysis.reconstructions import COLUMNS, draw, save
from a2mim.masking import expand_mask
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize


def shown(channels=3, side=160):
    """A dark image, a bright reconstruction, the upper left quarter hidden."""
    stats = (IMAGENET_MEAN[0],) * channels, (IMAGENET_STD[0],) * channels
    dark, bright = (normalize(torch.full((2, channels, side, side), v, dtype=torch.uint8), *stats) for v in (40, 200))
    mask = torch.tensor([[[True, False], [False, False]]]).expand(2, 2, 2)
    return {"target": dark, "masked": dark, "recon": bright, "hidden": expand_mask(mask, side, side)}, *stats


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_each_row_is_the_image_the_mask_the_answer_and_both_together(channels):
    picture = draw(*shown(channels))
    height, width, _ = picture.shape
    assert picture.dtype == np.uint8
    assert len(COLUMNS) == 4
    rows = picture[height - 160 :]
    panels = [rows[:, i * (width + 4) // 4 : i * (width + 4) // 4 + 160] for i in range(4)]
    corners = [(int(p[10, 10, 0]), int(p[150, 150, 0])) for p in panels]
    assert [abs(a - b) <= 1 for a, b in zip(corners[0], (40, 40), strict=True)] == [True, True]
    assert corners[1][1] in (39, 40, 41)
    assert 125 <= corners[1][0] <= 130  # hidden: mid-grey
    assert corners[2] == (200, 200)
    assert corners[3] == (200, corners[0][1])


def test_small_images_are_enlarged_in_whole_pixels_and_the_columns_are_titled():
    picture = draw(*shown(side=32))
    assert picture.shape[1] == 4 * 160 + 3 * 4
    assert (picture[:20] < 128).any()  # the titles


def test_a_picture_is_written_and_read_back_in_the_same_colours(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[..., 0] = 200  # red
    save(picture, tmp_path / "new" / "a.png")
    assert np.array_equal(mmcv.imread(str(tmp_path / "new" / "a.png"), channel_order="rgb"), picture)

"""The pictures show what they say they show."""

import mmcv
import numpy as np
import pytest
import torch

from a2mim.analysis.reconstructions import COLUMNS, draw, layout, save
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


def test_data_in_a_small_part_of_their_range_are_stretched_from_black_to_white_band_by_band():
    generator = torch.Generator().manual_seed(0)
    # (4, 6, 32, 32): 12 bits in 16, each band with a range of its own
    values = (torch.rand(4, 6, 32, 32, generator=generator) * 600 + torch.arange(6)[:, None, None] * 500).to(
        torch.uint16
    )
    stats = [(0.03,) * 6, (0.01,) * 6]
    target = normalize(values, *stats)
    hidden = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    images = {"target": target, "recon": target, "hidden": hidden}
    header = layout(images)["header"]
    plain, stretched = draw(images, *stats)[header:], draw(images, *stats, stretch=True)[header:]
    assert plain[:160, :160].max() < 20  # nearly black
    for band in range(3):
        panel = stretched[:160, :160, band]
        assert panel.min() == 0 and panel.max() == 255 and 110 < panel.mean() < 145


def test_the_bands_that_are_asked_for_are_shown_in_their_order():
    images, mean, std = shown(channels=5, side=160)
    levels = torch.tensor([10, 60, 110, 160, 210], dtype=torch.uint8)[None, :, None, None].expand(2, 5, 160, 160)
    images["target"] = images["recon"] = normalize(levels, mean, std)
    middle = layout(images)["header"] + 155
    assert draw(images, mean, std, bands=(4, 2, 0))[middle, 155].tolist() == [210, 110, 10]
    assert draw(images, mean, std, bands=(3,))[middle, 155].tolist() == [160, 160, 160]


def test_the_caption_stands_in_the_header_alone():
    images, *stats = shown()
    header = layout(images)["header"]
    plain, told = draw(images, *stats), draw(images, *stats, caption="step 5 of 10, epoch 0.50, loss 0.1234")
    assert np.array_equal(plain[header:], told[header:]) and (plain[:20] == 255).all() and (told[:20] < 128).any()


def test_small_images_are_enlarged_in_whole_pixels_and_the_columns_are_titled():
    picture = draw(*shown(side=32))
    assert picture.shape[1] == 4 * 160 + 3 * 4
    assert (picture[20:44] < 128).any()  # the titles


def test_a_picture_is_written_and_read_back_in_the_same_colours(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[..., 0] = 200  # red
    save(picture, tmp_path / "new" / "a.png")
    assert np.array_equal(mmcv.imread(str(tmp_path / "new" / "a.png"), channel_order="rgb"), picture)

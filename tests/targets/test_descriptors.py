"""HOG and LBP against slow loops over pixels, and what must not change them."""

import math

import pytest
import torch
import torch.nn.functional as F

from a2mim.pixels import normalize
from a2mim.targets import HOG, LBP


def pictures(side=32, channels=3, seed=0, dtype=torch.uint8):
    top = 256 if dtype == torch.uint8 else 65536
    values = torch.randint(0, top, (2, channels, side, side), generator=torch.Generator().manual_seed(seed))
    values[:, :, :16, :16] = 7  # flat cells
    values[:, :, 16:, :8] = torch.arange(8) * 9  # gradients along one axis alone
    return values.to(dtype)


def reflect(i, n):
    return -i if i < 0 else 2 * n - 2 - i if i >= n else i


def slow_hog(image, side=8):
    """(C, H, W) uint8 -> (9 C, H / side, W / side), one pixel at a time, in float64."""
    channels, height, width = image.shape
    value = (image.double() / 256).tolist()
    out = torch.zeros(channels, 9, height // side, width // side, dtype=torch.float64)
    for c in range(channels):
        for y in range(height):
            for x in range(width):

                def at(dy, dx, c=c, y=y, x=x):
                    return value[c][reflect(y + dy, height)][reflect(x + dx, width)]

                gx = sum(w * (at(d, -1) - at(d, 1)) for d, w in ((-1, 1), (0, 2), (1, 1)))
                gy = sum(w * (at(-1, d) - at(1, d)) for d, w in ((-1, 1), (0, 2), (1, 1)))
                k = math.floor(math.atan2(gx, gy) / math.pi * 9) % 9
                out[c, k, y // side, x // side] += math.hypot(gx, gy)
    return F.normalize(out, dim=1).flatten(0, 1)


def test_hog_equals_a_loop_over_pixels():
    images = pictures()
    found = HOG()(normalize(images))
    assert found.shape == (2, 27, 4, 4)
    assert found.dtype == torch.float32
    expected = torch.stack([slow_hog(image) for image in images])
    assert (found - expected).abs().max() < 5e-7
    assert found[:, :, 0, 0].abs().max() == 0  # a flat cell
    assert torch.equal(HOG()(images), found)


def test_scales_stand_behind_each_other_and_coarse_cells_are_repeated():
    images = pictures()[:1, :1]
    part = HOG((0.5,), (0.2,), cells=[4, 8, 32])
    assert (part.channels, part.stride) == (27, 4)
    found = part(images)
    assert found.shape == (1, 27, 8, 8)
    for i, side in enumerate((4, 8, 32)):
        expected = slow_hog(images[0], side).repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)
        assert (found[0, 9 * i : 9 * i + 9] - expected).abs().max() < 5e-7


@pytest.mark.parametrize(
    "cells", [0, [], [8, 4], [4, 6], [4.0, 8], "8", None, True, [True], [4, True], 8.0, [4, None], [[8]], {8: 1}]
)
def test_scales_that_do_not_fit_into_each_other_are_one_sentence(cells):
    with pytest.raises(ValueError, match=r"cells=.* each a multiple of the first"):
        HOG(cells=cells)
    with pytest.raises(ValueError, match="cells of 32 px, which do not divide 48x48"):
        HOG(cells=[4, 32])(torch.zeros(1, 3, 48, 48))


def test_hog_does_not_depend_on_the_normalisation_of_the_recipe():
    images = pictures()
    one = HOG()(normalize(images))
    mean, std = (0.1, 0.7, 0.33), (0.9, 0.111, 0.3)
    assert torch.equal(HOG(mean, std)(normalize(images, mean, std)), one)
    assert torch.equal(HOG((0, 0, 0), (1, 1, 1))(images.float() / 255), one)


def test_sixteen_bit_images_have_the_hog_of_their_levels():
    images = pictures(dtype=torch.int32).to(torch.uint16)
    eight = (images.int() // 257).to(torch.uint8)
    found = HOG()(normalize(images))
    assert found[:, :, 0, 0].abs().max() == 0
    assert torch.equal(HOG()(normalize((eight.int() * 257).to(torch.uint16))), HOG()(normalize(eight)))


def test_pixel_shuffle_of_two_by_two_cells_is_maskfeat_s_vector_of_a_patch():
    """MaskFeat: unfold 2 x 2 cells of (B, C, 9, H / 8, W / 8), cells last: c, bin, then row and column of the cell."""
    found = HOG()(normalize(pictures()))
    official = F.unfold(found, 2, stride=2).view(2, 108, 2, 2)
    assert torch.equal(F.pixel_shuffle(official, 2), found)


def slow_lbp(image):
    grey = image.int().sum(0).tolist()
    height, width = len(grey), len(grey[0])
    out = torch.zeros(10, height // 8, width // 8)
    for y in range(height):
        for x in range(width):
            ring = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
            bits = [grey[reflect(y + dy, height)][reflect(x + dx, width)] >= grey[y][x] for dy, dx in ring]
            changes = sum(bits[i] != bits[i - 1] for i in range(8))
            out[sum(bits) if changes <= 2 else 9, y // 8, x // 8] += 1
    return F.normalize(out, dim=0)


def test_lbp_equals_a_loop_over_pixels():
    images = pictures()
    found = LBP()(normalize(images))
    assert found.shape == (2, 10, 4, 4)
    assert torch.allclose(found, torch.stack([slow_lbp(image) for image in images]), atol=1e-6)


def test_an_increasing_map_of_grey_changes_no_pattern_and_a_turn_turns_the_map():
    grey = pictures(channels=1, seed=3).expand(-1, 3, -1, -1)
    found = LBP()(normalize(grey))
    steeper = ((grey.float() / 255).square() * 65535).int().to(torch.uint16)  # 16 bits keep the levels apart
    assert torch.equal(LBP()(normalize(steeper)), found)
    turned = LBP()(normalize(grey.rot90(1, (2, 3))))
    assert torch.equal(turned, found.rot90(1, (2, 3)))


@pytest.mark.parametrize("part", [HOG, LBP])
def test_a_size_that_is_no_multiple_of_8_is_one_sentence(part):
    with pytest.raises(ValueError, match="cells of 8 px, which do not divide 36x36"):
        part()(torch.zeros(1, 3, 36, 36))


def test_a_descriptor_states_its_channels_and_stride():
    assert (HOG().channels, HOG().stride) == (27, 8)
    assert HOG((0.1,) * 4, (1.0,) * 4).channels == 36
    assert (LBP().channels, LBP().stride) == (10, 8)
    with pytest.raises(ValueError, match="given 4 channels and the mean and std of 3"):
        HOG()(torch.zeros(1, 4, 8, 8))

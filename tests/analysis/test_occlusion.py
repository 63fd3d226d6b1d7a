"""Hiding parts of images: how much, where, by what; and what a known classifier answers then."""

import numpy as np
import pytest
import torch

from a2mim.analysis.occlusion import FILLINGS, RATIOS, accuracy_under_occlusion, hidden_cells, occlude


@pytest.mark.parametrize("ratio", RATIOS)
def test_exactly_the_share_of_cells_is_hidden_and_more_hides_the_same_ones_too(ratio):
    hidden = hidden_cells(49, ratio, seed=3, number=5)
    assert hidden.sum() == round(49 * ratio)
    assert (hidden_cells(49, 1.0, 3, 5) >= hidden).all() and np.array_equal(hidden, hidden_cells(49, ratio, 3, 5))
    assert not (hidden_cells(49, 0.1, 3, 5) & ~hidden).any() or ratio < 0.1


def test_images_have_masks_of_their_own():
    assert not np.array_equal(hidden_cells(49, 0.5, 0, 0), hidden_cells(49, 0.5, 0, 1))


@pytest.mark.parametrize("filling", FILLINGS)
def test_hidden_cells_are_filled_and_the_others_untouched(filling):
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 2
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 5] = True  # row 1, column 1: pixels 2 and 3
    found = occlude(images, hidden, (4, 4), filling, seed=0, first=7)
    changed = (found != images).any(1)
    assert changed[:, 2:4, 2:4].all() and changed.sum() == 2 * 4
    patch = found[:, :, 2:4, 2:4]
    if filling == "zero":
        assert (patch == 0).all()
    if filling == "mean colour":
        assert torch.allclose(patch, images.mean((2, 3), keepdim=True).expand_as(patch))
    if filling == "noise":
        again = occlude(images[1:], hidden[1:], (4, 4), filling, seed=0, first=8)
        assert torch.equal(again[0], found[1]) and not torch.equal(patch[0], patch[1])


def test_a_classifier_of_brightness_falls_to_chance_by_zeros_and_stays_by_the_mean():
    labels = torch.arange(40) % 2
    images = (labels * 2.0 + 1).view(-1, 1, 1, 1).expand(40, 3, 8, 8).contiguous()

    def answer(x):
        return (x.mean((1, 2, 3)) > 2).long()

    found = accuracy_under_occlusion(answer, [(images[:25], labels[:25]), (images[25:], labels[25:])], (4, 4))
    assert found["zero"]["top1"][0] == 100 and found["zero"]["top1"][-1] == 50
    assert found["mean colour"]["top1"] == [100.0] * len(RATIOS)
    noise = found["noise"]
    assert all(low <= y <= high for low, y, high in zip(noise["low"], noise["top1"], noise["high"], strict=True))


def test_a_grid_that_does_not_fit_is_one_sentence():
    with pytest.raises(ValueError, match="does not divide images of 8 x 8 px"):
        occlude(torch.zeros(1, 3, 8, 8), torch.zeros(1, 9, dtype=torch.bool), (3, 3), "zero", 0, 0)

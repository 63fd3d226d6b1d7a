"""Spectra by depth, against the definition in numpy and on maps whose spectrum is known."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from a2mim.analysis.spectra import spectra


class Maps(nn.Module):
    """Gives fixed maps, whatever the image."""

    def __init__(self, *maps: torch.Tensor):
        super().__init__()
        self.maps = maps

    def forward_intermediates(self, images, output_fmt, intermediates_only):
        return [one[: len(images)] for one in self.maps]


def test_the_curve_is_the_definition_written_out():
    features = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    (found,) = spectra(Maps(features), [torch.zeros(3, 3, 8, 8)])
    shifted = np.fft.fftshift(np.fft.fft2(features.numpy().astype(np.float64)), axes=(-2, -1))
    diagonal = np.diag(np.log(np.abs(shifted) + 1e-6).mean(axis=(0, 1)))[4:]
    np.testing.assert_allclose(found.amplitude, diagonal - diagonal[0], atol=1e-9)
    np.testing.assert_allclose(found.variance, features.numpy().var(axis=(-2, -1)).mean(), rtol=1e-6)
    assert found.frequency[0] == 0 and found.frequency[-1] == 1 and found.amplitude[0] == 0


def test_batches_do_not_change_the_mean():
    features = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    whole = spectra(Maps(features), [torch.zeros(4, 3, 6, 6)])
    halves = Maps(features[:2])
    parts = iter((features[:2], features[2:]))
    halves.forward_intermediates = lambda images, output_fmt, intermediates_only: [next(parts)]
    found = spectra(halves, [torch.zeros(2, 3, 6, 6)] * 2)
    np.testing.assert_allclose(found[0].amplitude, whole[0].amplitude, atol=1e-9)


def test_a_smooth_map_has_weak_high_frequencies_and_noise_has_not():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, 3, 16, 16, generator=generator) + 1
    ramp = torch.linspace(0, 1, 16)
    smooth = (ramp[:, None] + ramp[None]).expand(8, 3, 16, 16)
    rough, soft = spectra(Maps(noise, smooth), [torch.zeros(8, 3, 16, 16)])
    assert soft.amplitude[-1] < rough.amplitude[-1] - 3
    assert (rough.depth, soft.depth) == (0, 1)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_networks_of_timm_give_a_curve_for_each_block(name):
    model = timm.create_model(name, num_classes=0).eval()
    images = torch.randn(2, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    found = spectra(model, [images])
    assert len(found) >= 2 and all(np.isfinite(one.amplitude).all() and one.variance > 0 for one in found)


def test_oblong_maps_have_a_diagonal_too():
    (found,) = spectra(Maps(torch.randn(1, 2, 4, 10)), [torch.zeros(1, 3, 4, 10)])
    assert found.frequency == (0.0, 1.0)


def test_what_gives_no_maps_is_refused():
    with pytest.raises(ValueError, match="does not let its blocks"):
        spectra(nn.Identity(), [torch.zeros(1, 3, 8, 8)])
    with pytest.raises(ValueError, match="no image"):
        spectra(Maps(torch.zeros(1, 1, 4, 4)), [])

"""The decoder's weights, order of pixels and size."""

import pytest
import timm
import torch

from a2mim.decoders import LinearDecoder, linear
from a2mim.targets import NormalizedPatches, Pixels


def test_output_pixels_follow_the_pixel_shuffle_order():
    decoder = LinearDecoder(in_channels=4, stride=2, out_channels=3)
    features = torch.randn(1, 4, 3, 5)
    flat = torch.nn.functional.conv2d(features, decoder.proj.weight, decoder.proj.bias)
    out = decoder(features)
    assert out.shape == (1, 3, 6, 10)
    for c in range(3):
        for h in range(3):
            for w in range(5):
                for i in range(2):
                    for j in range(2):
                        assert out[0, c, 2 * h + i, 2 * w + j] == flat[0, c * 4 + i * 2 + j, h, w]


def test_weights_start_truncated_normal_and_bias_zero():
    torch.manual_seed(0)
    decoder = LinearDecoder(512, 32)
    assert decoder.proj.weight.shape == (3 * 32**2, 512, 1, 1)
    assert abs(decoder.proj.weight.std().item() - 0.02) < 1e-3
    assert decoder.proj.bias.abs().max() == 0


def test_resnet50_has_the_published_sizes():
    encoder = timm.create_model("resnet50", num_classes=0)
    decoder = LinearDecoder(2048, 32)
    sizes = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (encoder, decoder)]
    assert [round(s, 2) for s in sizes] == [23.51, 6.29]


def test_pixels_are_the_images_and_normalised_patches_have_mean_0_and_variance_1():
    images = torch.randn(2, 3, 8, 8) * 3 + 1
    assert Pixels()(images) is images
    patches = NormalizedPatches(4)(images)
    for b, c, y, x in [(0, 0, 0, 0), (1, 2, 4, 4), (1, 0, 0, 4)]:
        patch = patches[b, c, y : y + 4, x : x + 4]
        assert abs(patch.mean()) < 1e-5
        assert abs(patch.var(unbiased=False) - 1) < 1e-3


@pytest.mark.parametrize("patch_size", [0, -4, True, "16", 2.0, None])
def test_a_patch_that_is_no_number_of_pixels_is_one_sentence(patch_size):
    with pytest.raises(ValueError, match=r"NormalizedPatches: patch_size=.* must be a whole number of at least 1"):
        NormalizedPatches(patch_size)


def test_a_patch_of_one_number_is_refused_and_one_of_several_channels_is_not():
    message = "patch_size=1 is one number, which has no contrast"
    with pytest.raises(ValueError, match=message):
        NormalizedPatches(1)
    target = NormalizedPatches(1, channels="together")
    with pytest.raises(ValueError, match=message):
        target.attach(None, (0.5,), (0.5,))
    with pytest.raises(ValueError, match=message):
        target(torch.randn(1, 1, 8, 8))
    assert target(torch.randn(1, 3, 8, 8)).isfinite().all()


def test_a_wide_decoder_computes_what_its_convolution_computes(monkeypatch):
    """As a product of matrices on a CPU: answers and gradients, for both memory formats, within rounding."""
    decoder = LinearDecoder(64, stride=4)
    images = torch.randn(3, 64, 2, 5)
    answers = []
    for wide, layout in ((2**40, torch.contiguous_format), (1, torch.contiguous_format), (1, torch.channels_last)):
        monkeypatch.setattr(linear, "WIDE", wide)
        features = images.to(memory_format=layout).requires_grad_()
        recon = decoder(features)
        gradients = torch.autograd.grad(recon.square().sum(), [features, *decoder.parameters()])
        answers.append([recon, *gradients])
    for other in answers[1:]:
        torch.testing.assert_close(other, answers[0])
    calls = []
    decoder.proj.register_forward_hook(lambda *_: calls.append(1))
    decoder(images)
    monkeypatch.setattr(linear, "WIDE", 2**40)
    decoder(images)
    assert len(calls) == 1  # the convolution itself runs for narrow decoders alone

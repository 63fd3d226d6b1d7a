"""Mask, fill, encode, decode, compare: put together, and learning."""

import pytest
import torch
from torch import nn

from a2mim.decoders import LinearDecoder
from a2mim.losses import FourierLoss, MaskedL1
from a2mim.masking import BlockMask, expand_mask
from a2mim.mim import MIM
from a2mim.pixels import denormalize, normalize
from a2mim.registry import MODELS


class TwoMaps(nn.Module):
    """A stand-in encoder with two grids, one of them overhanging the image, that notes what it was given."""

    channels, strides = [4, 8], [8, 16]

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 8, 8), nn.Conv2d(3, 8, 16, 16, padding=8)

    def forward(self, images, mask=None):
        self.seen = images
        return [self.fine(images), self.coarse(images)]


def build(**changes):
    arguments = {"encoder": TwoMaps(), "masking": BlockMask(8, 0.5), "losses": [MaskedL1()]} | changes
    return MIM(**arguments)


def images(batch=2, side=32):
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_uint8_is_normalised_and_float_taken_as_it_is():
    model, pixels = build(), images()
    mask = BlockMask(8, 0.5)(2, 32, 32)
    assert torch.equal(model(pixels, mask=mask)["loss_l1"], model(normalize(pixels), mask=mask)["loss_l1"])
    expected = (pixels[:, 1].float() / 255 - 0.456) / 0.224
    assert torch.allclose(normalize(pixels)[:, 1], expected, atol=1e-6)
    assert torch.equal(denormalize(normalize(pixels)), pixels)


def test_the_encoder_sees_the_mean_in_hidden_cells_and_the_target_stays_whole():
    model, mask = build(), BlockMask(8, 0.5)(2, 32, 32)
    shown = model(images(), mode="predict", mask=mask)
    hidden = expand_mask(mask, 32, 32)
    assert torch.equal(shown["hidden"], hidden)
    assert torch.equal(shown["target"], normalize(images()))
    mean = shown["target"].mean(dim=(2, 3), keepdim=True).expand_as(shown["target"])
    where = hidden.expand_as(mean)
    assert torch.allclose(model.encoder.seen[where], mean[where], atol=1e-5)
    assert torch.equal(model.encoder.seen[~where], shown["target"][~where])


def test_without_a_fill_the_encoder_sees_the_image():
    model = build(fill="none")
    shown = model(images(), mode="predict")
    assert torch.equal(model.encoder.seen, shown["target"])


def test_each_map_has_a_decoder_and_the_predictions_are_averaged_over_the_image():
    model = build()
    shown = model(images(), mode="predict")
    assert [type(d) for d in model.decoders] == [LinearDecoder, LinearDecoder]
    fine, coarse = (d(x) for d, x in zip(model.decoders, model.encoder(model.encoder.seen), strict=True))
    assert coarse.shape[-1] == 48  # three cells of 16 px: overhangs the 32 px image
    assert torch.allclose(shown["recon"], (fine + coarse[..., :32, :32]) / 2, atol=1e-6)


def test_losses_carry_their_weight_and_weight_0_is_left_out():
    mask = BlockMask(8, 0.5)(2, 32, 32)
    encoder, decoders = TwoMaps(), None
    values = []
    for weight in (1.0, 0.5):
        model = build(encoder=encoder, losses=[{"type": "MaskedL1", "weight": weight}, FourierLoss()])
        decoders = decoders or model.decoders
        model.decoders = decoders
        values.append(model(images(), mask=mask))
    assert values[1]["loss_l1"].item() == pytest.approx(values[0]["loss_l1"].item() / 2)
    assert torch.equal(values[0]["loss_fourier"], values[1]["loss_fourier"])
    assert set(build(losses=[MaskedL1(), {"type": "FourierLoss", "weight": 0}])(images())) == {"loss_l1"}


def test_the_baseline_is_the_loss_of_answering_the_mean_colour():
    model, mask = build(), BlockMask(8, 0.5)(2, 32, 32)
    target, hidden = normalize(images()), expand_mask(mask, 32, 32)
    mean = target.mean(dim=(2, 3), keepdim=True).expand_as(target)
    expected = MaskedL1()(mean, target, hidden)
    assert torch.allclose(model(images(), mode="baseline", mask=mask)["loss_l1"], expected, atol=1e-5)
    assert not hasattr(model.encoder, "seen")  # the encoder did not run


def test_a_generator_decides_the_mask():
    def shown(seed):
        return model(images(), mode="predict", generator=torch.Generator().manual_seed(seed))["hidden"]

    model = build()
    assert torch.equal(shown(1), shown(1))
    assert not torch.equal(shown(1), shown(2))


def test_mean_and_std_are_the_model_s_own_and_any_number_of_channels_is_decoded():
    class OneMap(nn.Module):
        channels, strides = [6], [8]

        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(4, 6, 8, 8)

        def forward(self, images, mask=None):
            return [self.stem(images)]

    model = build(encoder=OneMap(), mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 1.0, 0.5, 2.0))
    pixels = torch.randint(0, 256, (2, 4, 32, 32), dtype=torch.uint8)
    shown = model(pixels, mode="predict")
    assert shown["recon"].shape == (2, 4, 32, 32)
    assert torch.allclose(shown["target"][:, 3], (pixels[:, 3] / 255 - 0.4) / 2.0, atol=1e-6)


def test_the_target_is_the_part_that_the_recipe_names():
    model = build(target={"type": "NormalizedPatches", "patch_size": 8})
    target = model(images(), mode="predict")["target"]
    assert torch.allclose(target[0, 0, :8, :8].mean(), torch.tensor(0.0), atol=1e-5)
    with pytest.raises(ValueError, match="patch_size=7 does not divide 32x32"):
        build(target={"type": "NormalizedPatches", "patch_size": 7})(images())


def test_two_losses_of_one_kind_both_count():
    losses = [{"type": "FourierLoss", "weight": 1.0}, {"type": "FourierLoss", "alpha": 0.0, "weight": 2.0}]
    found = build(losses=losses)(images())
    assert set(found) == {"loss_fourier", "loss_fourier_2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fill": "means"}, "fill='means' is not known; did you mean mean"),
        ({"decoder": "lineer"}, "decoder='lineer' is not known; did you mean linear"),
        ({"target": "pixel"}, "target='pixel' is not known; did you mean pixels"),
        ({"losses": [{"type": "MaskedL3"}]}, "type='MaskedL3' is not a part of a2mim; did you mean MaskedL"),
        ({"losses": [{"type": "MaskedL1", "visible": 1}]}, "MaskedL1 has no argument 'visible'; did you mean visible_"),
        (
            {"masking": {"type": "BlockMask", "ratio": 0.6}},
            "BlockMask has no argument 'ratio'; did you mean mask_ratio",
        ),
    ],
)
def test_a_misspelt_part_is_one_sentence_with_the_nearest_name(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


def test_the_median_is_the_stronger_rival_on_line_drawings():
    drawing = torch.zeros(2, 3, 32, 32)
    drawing[..., ::8, :] = 1.0
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    model = build()
    found = model.baselines(drawing, mask=mask)
    assert found["median"].item() == pytest.approx(1 / 8)  # black everywhere: wrong where the lines are
    assert found["mean"].item() == pytest.approx(2 * 1 / 8 * 7 / 8)
    assert torch.equal(found["mean"], model(drawing, mode="baseline", mask=mask)["loss_l1"])


@pytest.mark.parametrize(
    ("name", "token"),
    [("resnet18", "scaled"), ("xcit_nano_12_p16_224", "add"), ("xcit_nano_12_p16_224", "replace")],
)
def test_it_memorises_one_batch_better_than_the_mean_colour(name, token):
    torch.manual_seed(0)
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    batch = (torch.nn.functional.interpolate(coarse, 32) * 255).to(torch.uint8)
    row = {
        "type": "MIM",
        "encoder": {"type": "MaskedEncoder", "name": name, "token": token, "img_size": 32, "mask_patch_size": 16},
        "masking": {"type": "BlockMask", "mask_patch_size": 16, "mask_ratio": 0.5},
        "losses": [{"type": "MaskedL1"}, {"type": "FourierLoss", "weight": 0.1}],
    }
    model = MODELS.build(row)
    mask = torch.tensor([[True, False], [False, True]]).expand(4, 2, 2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = sum(model(batch, mask=mask).values())
        loss.backward()
        optimizer.step()
    baseline = sum(model(batch, mode="baseline", mask=mask).values())
    assert loss.item() < 0.35 * baseline.item()
    assert model.encoder.tokens[0].grad.abs().sum() > 0

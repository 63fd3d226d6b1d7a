"""What MIM gives to its parts, and what they may answer."""

import pytest
import torch
from small_mim import build, images
from torch import nn

from a2mim.decoders import EachMap, LinearDecoder, TransformerDecoder
from a2mim.encoder import MaskedEncoder
from a2mim.losses import MaskedL1
from a2mim.masking import BEiTBlocks, BlockMask
from a2mim.registry import MODELS
from a2mim.targets import HOG


def test_a_target_of_other_channels_and_stride_is_decoded_on_its_own_grid():
    model = build(target="hog", masking=BEiTBlocks(16, 0.5))
    shown = model(images(), mode="predict")
    assert shown["target"].shape == shown["recon"].shape == (2, 27, 8, 8)
    assert shown["hidden"].shape == (2, 1, 8, 8)
    assert shown["masked"].shape == shown["images"].shape == (2, 3, 64, 64)
    assert torch.equal(shown["target"], HOG()(images()))
    assert model.decoders[0].proj.out_channels == 27 * 4
    mean = shown["target"].mean((2, 3), keepdim=True).expand_as(shown["target"])
    mask = model.masking(2, 64, 64)
    assert torch.allclose(
        model(images(), mode="baseline", mask=mask)["loss_l1"],
        MaskedL1()(mean, shown["target"], mask.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]),
    )


def test_the_recipe_s_normalisation_reaches_the_target():
    model = build(target={"type": "HOG"}, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert torch.equal(model(images(), mode="predict")["target"], HOG()(images()))


def test_a_mask_part_may_see_the_images():
    class Brightest:
        """Hides the brightest half of the cells."""

        def __call__(self, batch_size, height, width, generator=None, device=None, images=None):
            cells = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 16)[:, 0]
            rank = cells.flatten(1).argsort(1).argsort(1).view_as(cells)
            return rank >= cells[0].numel() // 2

    model = build(masking=Brightest())
    picture = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    picture[:, :, :32] = 200
    hidden = model(picture, mode="predict")["hidden"]
    assert hidden[:, :, :32].all()
    assert not hidden[:, :, 32:].any()


def test_a_loss_may_return_several_terms():
    class Two(nn.Module):
        name = "two"

        def forward(self, recon, target, hidden):
            error = (recon - target).abs()
            return {"all": error.mean(), "most": error.amax()}

    found = build(losses=[MaskedL1(), Two()])(images())
    assert set(found) == {"loss_l1", "loss_two_all", "loss_two_most"}


def test_views_of_an_image_are_images_and_one_image_may_have_several_masks():
    model = build()
    views = torch.stack([images(), images().flip(-1)], dim=1)
    shown = model(views, mode="predict")
    assert torch.equal(shown["images"][1], shown["images"][0].flip(-1))
    masks = BlockMask(16, 0.5)(6, 64, 64).view(2, 3, 4, 4)
    shown = model(images(), mode="predict", mask=masks)
    assert shown["recon"].shape == (6, 3, 64, 64)
    assert torch.equal(shown["target"][0], shown["target"][2])
    assert not torch.equal(shown["hidden"][0], shown["hidden"][1])


def test_parts_with_something_to_do_after_a_step_are_told_the_step():
    class Counting(BlockMask):
        def after_step(self, encoder, step, steps):
            self.told = encoder, step, steps

    model = build(masking=Counting(16, 0.5))
    model.after_step(3, 10)
    assert model.masking.told == (model.encoder, 3, 10)


class ReadsTokens(nn.Module):
    """Keeps the class tokens that it was given."""

    def forward(self, maps, mask, prefix=None, prefixes=None):
        self.seen = prefix, prefixes
        return maps[-1].new_zeros(len(mask), 3, 64, 64)


@pytest.mark.parametrize("hide", ["token", "drop"])
def test_a_decoder_that_takes_prefixes_is_given_the_class_tokens_of_each_map(hide):
    encoder = MaskedEncoder("test_vit", img_size=64, hide=hide, maps=["blocks.0", "blocks.3"])
    outputs = []
    for name in ("blocks.0", "blocks.3"):
        encoder.model.get_submodule(name).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model = build(encoder=encoder, decoder=ReadsTokens())
    outputs.clear()
    model(images(), mask=BlockMask(16, 0.5)(2, 64, 64))
    prefix, prefixes = model.decoders.seen
    assert [one.shape for one in prefixes] == [(2, 1, 64)] * 2
    assert all(torch.equal(one, output[:, :1]) for one, output in zip(prefixes, outputs, strict=True))
    assert prefix is prefixes[1]


def test_a_decoder_of_the_contract_sees_all_maps_and_the_mask():
    class Own(nn.Module):
        def __init__(self, channels, strides, out_channels, out_stride):
            super().__init__()
            self.inner = EachMap(LinearDecoder, channels, strides, out_channels, out_stride)

        def forward(self, maps, mask, prefix=None):
            self.seen = [m.shape for m in maps], mask
            return self.inner(maps, mask)

    MODELS.register_module(module=Own, name="OwnDecoder")
    try:
        model = build(
            decoder={"type": "OwnDecoder"},
            encoder=MaskedEncoder("resnet18", img_size=64, maps=["layer3", "layer4"]),
        )
        mask = BlockMask(16, 0.5)(2, 64, 64)
        model(images(), mask=mask)
    finally:
        MODELS.module_dict.pop("OwnDecoder")
    assert [s[1] for s in model.decoders.seen[0]] == [256, 512]
    assert torch.equal(model.decoders.seen[1], mask)


def test_a_decoder_named_in_short_or_given_as_an_object_is_used():
    assert isinstance(build(decoder="transformer").decoders, TransformerDecoder)
    assert build(decoder="transformer").decoders.mask_token is None  # the token enters at the encoder's site
    old = LinearDecoder(128, 16)
    assert build(decoder=old).decoders[0] is old


def test_a_function_with_a_name_is_a_loss():
    def error(recon, target, hidden):
        return (recon - target).abs().mean()

    error.name, told = "mine", []
    error.after_step = lambda *given: told.append(given[1:])
    model = build(losses=[error])
    assert list(model(images())) == ["loss_mine"]
    model.after_step(2, 5)
    assert told == [(2, 5)]


def registered(kind):
    MODELS.register_module(module=kind)
    return {"type": kind.__name__}


@pytest.fixture
def forget():
    before = set(MODELS.module_dict)
    yield
    for name in set(MODELS.module_dict) - before:
        MODELS.module_dict.pop(name)


class Moving(LinearDecoder):
    """A decoder of one map that has something to do after a step."""

    def __init__(self, in_channels, stride, out_channels=3):
        super().__init__(in_channels, stride, out_channels)
        self.told = []

    def after_step(self, encoder, step, steps):
        self.told.append((step, steps))


def test_decoders_of_one_map_and_of_one_scale_are_told_the_step_once(forget):
    part, encoder = registered(Moving), MaskedEncoder("resnet18", img_size=64, maps=["layer2", "layer3"])
    target = {"type": "HOG", "cells": [8, 16]}
    for decoder, change in ((part, {}), ({"type": "EachScale", "decoder": part}, {"target": target})):
        model = build(decoder=decoder, encoder=encoder, **change)
        model.after_step(3, 10)
        inner = [one for one in model.decoders.modules() if isinstance(one, Moving)]
        assert [one.told for one in inner] == [[(3, 10)], [(3, 10)]]
    shared = Moving(256, 16)
    model = build(decoder=shared, encoder=MaskedEncoder("resnet18", img_size=64, maps=["layer3", "layer3.1"]))
    model.after_step(3, 10)
    assert shared.told == [(3, 10)]


def test_a_mask_that_is_a_module_sees_images_and_keeps_its_state(forget):
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("ratio", torch.tensor(0.5))

        def forward(self, batch_size, height, width, generator=None, device=None, images=None):
            assert images is not None and len(images) == batch_size
            return BlockMask(16, float(self.ratio))(batch_size, height, width, generator, device)

        def after_step(self, encoder, step, steps):
            self.ratio.fill_(0.75)

    model, other = build(masking=Growing()), build(masking=Growing())
    model.after_step(1, 2)
    other.load_state_dict(model.state_dict())
    assert other.draw_mask(torch.zeros(2, 3, 64, 64)).sum() == 24


class NoPrefix(nn.Module):
    """A decoder of all maps that has no use for class tokens."""

    def __init__(self, channels, strides, out_channels, out_stride):
        super().__init__()
        self.linear = LinearDecoder(channels[-1], int(strides[-1] // out_stride), out_channels)

    def forward(self, maps, mask):
        return self.linear(maps[-1])


class NoModule:
    def __init__(self, channels, strides, out_channels, out_stride):
        pass


def test_a_decoder_may_leave_the_class_token_out_and_must_be_a_module(forget):
    assert build(decoder=registered(NoPrefix))(images())
    with pytest.raises(ValueError, match="the decoder NoModule is no torch"):
        build(decoder=registered(NoModule))


def test_a_decoder_given_as_an_object_has_a_mask_token_where_cells_are_left_out():
    encoder = MaskedEncoder("test_vit", img_size=64, hide="drop", mask_patch_size=16)
    model = build(encoder=encoder, decoder=LinearDecoder(64, 16), fill="none")
    assert "token_0" in dict(model.decoders.named_parameters())

"""What MIM asks of its parts, and what it says of one that answers otherwise."""

import pytest
import torch
from torch import nn

from a2mim.decoders import EachMap, LinearDecoder, TransformerDecoder
from a2mim.encoder import MaskedEncoder
from a2mim.losses import MaskedL1
from a2mim.masking import BEiTBlocks, BlockMask
from a2mim.mim import MIM
from a2mim.registry import MODELS
from a2mim.targets import HOG, Pixels


def build(**changes):
    torch.manual_seed(0)
    encoder = MaskedEncoder("xcit_nano_12_p16_224", img_size=64)
    arguments = {"encoder": encoder, "masking": BlockMask(16, 0.5), "losses": [MaskedL1()]} | changes
    return MIM(**arguments)


def images(batch=2, side=64):
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


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


class Wrong:
    """A target that does not answer what it states."""

    channels, stride = 3, 1

    def __init__(self, channels=3, stride=1, answer=None):
        self.channels, self.stride, self.answer = channels, stride, answer

    def __call__(self, images):
        return images if self.answer is None else torch.zeros(len(images), *self.answer)


class Mask:
    def __init__(self, answer):
        self.answer = answer

    def __call__(self, batch_size, height, width, generator=None, device=None):
        return self.answer(batch_size)


class Forgetful(nn.Module):
    """A decoder of the contract that forgets the stride."""

    def forward(self, maps, mask, prefix=None):
        return maps[0][:, :3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target": Wrong(4)},
            r"the target Wrong answers \(2, 3, 64, 64\) for 2 images .* so \(2, 4, 64, 64\) is expected",
        ),
        ({"target": Wrong(8, 16, (8, 5, 4))}, r"answers \(2, 8, 5, 4\) .* so \(2, 8, 4, 4\) is expected"),
        (
            {"masking": Mask(lambda b: torch.zeros(b, 16, dtype=torch.bool))},
            r"the mask part Mask answers \(2, 16\) torch.bool for 2 images; expected is \(2, rows, cols\) torch.bool",
        ),
        ({"masking": Mask(lambda b: torch.zeros(b, 4, 4))}, r"answers \(2, 4, 4\) torch.float32"),
        ({"masking": Mask(lambda b: torch.zeros(1, 4, 4, dtype=torch.bool))}, r"answers \(1, 4, 4\) torch.bool"),
        ({"masking": Mask(lambda b: None)}, "answers NoneType for 2 images"),
        (
            {"masking": Mask(lambda b: torch.zeros(b, 5, 5, dtype=torch.bool))},
            "answers 5x5 cells, which do not divide the image of 64x64 pixels",
        ),
        (
            {"masking": BlockMask(4, 0.5), "target": "hog"},
            r"answers 16x16 cells, which do not divide the target's grid of 8x8 cells.* stride \(8 px\)",
        ),
        (
            {"decoder": nn.Conv2d(128, 3, 1)},
            r"the decoder Conv2d answers \(2, 3, 4, 4\) for maps of \(2, 128, 4, 4\); \(2, 3, 64, 64\) is expected",
        ),
        (
            {"decoder": LinearDecoder(128, 16, out_channels=4)},
            r"answers \(2, 4, 64, 64\) for maps of \(2, 128, 4, 4\); \(2, 3, 64, 64\) is expected",
        ),
        ({"decoder": Forgetful()}, r"the decoder Forgetful answers \(2, 3, 4, 4\) .* \(2, 3, 64, 64\) is expected"),
    ],
)
def test_a_part_of_the_wrong_shape_is_one_sentence_before_the_first_step(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


def test_trying_the_parts_draws_no_random_number_and_moves_no_buffer():
    states = []
    for target in (Pixels(), "pixels"):
        model = build(target=target, decoder="light", encoder=MaskedEncoder("resnet18", img_size=64))
        states.append(torch.rand(3))
        assert all(int(n.num_batches_tracked) == 0 for n in model.decoders.modules() if hasattr(n, "running_mean"))
        assert model.decoders.training
    torch.manual_seed(0)


def only_two(recon, target, hidden):
    return (recon - target).abs().mean((1, 2, 3))


only_two.name = "two"


class NoName(nn.Module):
    def forward(self, recon, target, hidden):
        return (recon - target).abs().mean()


class Numbers(NoName):
    name = "numbers"

    def forward(self, recon, target, hidden):
        return {"all": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fill": lambda images, hidden: images[:, :1]}, r"answers \(2, 1, 64, 64\) for images of \(2, 3, 64, 64\)"),
        ({"fill": lambda images, hidden: None}, "the fill <lambda> answers NoneType"),
        ({"losses": [only_two]}, r"the loss two answers \(2,\); a scalar tensor"),
        ({"losses": [Numbers()]}, "the loss numbers answers float; a scalar tensor"),
        ({"losses": [NoName()]}, "the loss NoName must be called as .* and have an attribute name"),
        ({"losses": [MaskedL1]}, r"losses holds the class MaskedL1; give an object, MaskedL1\(\)"),
        ({"losses": []}, "at least one loss with a weight above 0"),
        ({"losses": [{"type": "MaskedL1", "weight": 0}]}, "at least one loss with a weight above 0"),
    ],
)
def test_a_fill_or_a_loss_that_answers_otherwise_is_one_sentence_before_the_first_step(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


class WholeBatch(nn.Module):
    name = "whole"

    def forward(self, recon, target):
        return (recon - target).abs().mean()


class Demanding(nn.Module):
    def forward(self, maps, mask, prefix, width):
        return maps[0]


def seeing(batch_size, height, width, generator, device, images):
    """A mask part that cannot do without its arguments."""
    return torch.zeros(batch_size, 4, 4, dtype=torch.bool, device=device)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fill": None}, r"the fill is None; it must be called as fill\(images, hidden\), or be one of 'mean', 'none'"),
        ({"target": None}, "the target is None; .* or be one of 'pixels', 'hog'"),
        ({"target": Wrong}, "the target is the class Wrong; give an object"),
        ({"masking": None}, "the mask is None"),
        ({"masking": "BlockMask"}, r"the mask is 'BlockMask'; it must be called as mask\(batch_size, height, width"),
        ({"masking": lambda b, h, w, generator=None: None}, "the mask <lambda> cannot be called as .*'device'"),
        ({"fill": lambda images: images}, r"the fill <lambda> cannot be called as fill\(images, hidden\): too many"),
        ({"target": {"type": "BlockMask"}}, r"the target BlockMask cannot be called as target\(images\)"),
        ({"losses": [WholeBatch()]}, r"the loss WholeBatch cannot be called as loss\(recon, target, hidden\)"),
        ({"encoder": "test_vit"}, "the encoder is 'test_vit'; give a MaskedEncoder"),
        ({"decoder": Demanding()}, r"the decoder Demanding cannot be called as decoder\(maps, mask\): .*'width'"),
        ({"target": Wrong(stride=0)}, "the target Wrong: stride=0 must be a whole number of at least 1"),
        ({"target": Wrong(channels="3")}, "the target Wrong: channels='3' must be a whole number"),
        ({"target": lambda images: None}, r"answers NoneType for 2 images .* \(2, 3, 64, 64\) is expected"),
        ({"decoder": {"type": "LinearDecoder", "out_channels": 4}}, "LinearDecoder: out_channels cannot be chosen"),
        ({"decoder": {"type": "LightDecoder", "mask_token": True}}, "LightDecoder: mask_token cannot be chosen"),
    ],
)
def test_a_part_that_is_none_or_is_called_otherwise_is_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


def test_a_mask_part_may_need_all_of_its_arguments():
    assert build(masking=seeing).draw_mask(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 4)


@pytest.mark.parametrize("hide", ["token", "drop"])
def test_patches_that_timm_would_leave_out_itself_are_refused(hide):
    encoder = MaskedEncoder("test_vit", img_size=64, mask_patch_size=16, hide=hide, model_args={"patch_drop_rate": 0.5})
    with pytest.raises(ValueError, match=r"patch_drop_rate .* leave it out of model_args"):
        build(encoder=encoder)


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


def test_images_with_unequally_many_hidden_cells_are_refused_at_any_step():
    class Later:
        """Uneven from its second call on."""

        calls = 0

        def __call__(self, batch_size, height, width, generator=None, device=None):
            mask = torch.zeros(batch_size, 4, 4, dtype=torch.bool)
            for i in range(batch_size):
                mask[i].view(-1)[: 8 + (i if self.calls else 0)] = True
            self.calls += 1
            return mask

    encoder = MaskedEncoder("test_vit", img_size=64, hide="drop", mask_patch_size=16)
    model = build(encoder=encoder, masking=Later(), decoder="transformer", fill="none")
    with pytest.raises(ValueError, match=r"the mask part Later hides \[8, 9\] cells of 2 images; with hide='drop'"):
        model.draw(images(), torch.Generator())


@pytest.mark.parametrize(("network", "hide", "cell"), [("test_resnet", "sparse", 16), ("test_vit", "drop", 8)])
def test_cells_smaller_than_those_of_a_map_are_refused_where_hidden_cells_are_left_out(network, hide, cell):
    encoder = MaskedEncoder(network, img_size=64, hide=hide, mask_patch_size=32)
    with pytest.raises(ValueError, match=f"with hide='{hide}' a mask cell must hold whole cells of every map"):
        build(encoder=encoder, masking=BlockMask(cell, 0.5), decoder="light" if hide == "sparse" else "transformer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": {"type": "MaskedL1"}}, "MaskedL1 is no decoder, which is made as Decoder"),
        ({"losses": [{"weight": 1}]}, r"needs the name of its kind under 'type', .* given \{\}"),
        ({"fill": {}}, "needs the name of its kind under 'type'"),
        ({"target": {"type": "Pixels", "size": 3}}, "Pixels has no argument 'size'; it takes none"),
        ({"target": {"type": "RandomFeatures", "stride": 128}}, "has cells of 128 px, larger than the image of 64x64"),
        ({"target": {"type": "RandomFeatures", "seed": "a"}}, "seed='a' must be a whole number of at least 0"),
    ],
)
def test_a_config_that_cannot_be_a_part_there_is_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)

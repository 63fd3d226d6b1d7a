"""What MIM asks of its parts, and what it says of one that answers otherwise."""

import pytest
import torch
from torch import nn

from a2mim.decoders import EachMap, LinearDecoder, TransformerDecoder
from a2mim.encoder import MaskedEncoder
from a2mim.losses import MaskedL1
from a2mim.masking import BEiTBlocks, BlockMask
from a2mim.mim import MIM
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


def test_a_decoder_of_the_contract_sees_all_maps_and_the_mask():
    class Own(nn.Module):
        def __init__(self, channels, strides, out_channels, out_stride):
            super().__init__()
            self.inner = EachMap(LinearDecoder, channels, strides, out_channels, out_stride)

        def forward(self, maps, mask, prefix=None):
            self.seen = [m.shape for m in maps], mask
            return self.inner(maps, mask)

    from a2mim.registry import MODELS

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

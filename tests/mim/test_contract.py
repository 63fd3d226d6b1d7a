"""What MIM says of a part that answers otherwise than it must."""

import pytest
import torch
from small_mim import build, images
from torch import nn

from a2mim.decoders import LinearDecoder
from a2mim.encoder import MaskedEncoder
from a2mim.losses import MaskedL1
from a2mim.masking import BlockMask
from a2mim.targets import Pixels


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

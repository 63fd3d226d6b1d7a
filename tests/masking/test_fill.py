"""What stands in hidden pixels, for images of any number of channels."""

import pytest
import torch
from torch import nn

from a2mim.encoder import MaskedEncoder
from a2mim.losses import MaskedL1
from a2mim.masking import BlockMask, fill_mean, make_fill
from a2mim.masking.fill import LearnedFill
from a2mim.mim import MIM
from a2mim.registry import MODELS


class Own(nn.Module):
    """A fill of the user's, which takes the channels."""

    def __init__(self, in_chans, value=0.0):
        super().__init__()
        self.colour, self.value = nn.Parameter(torch.zeros(in_chans, 1, 1)), value

    def forward(self, images, hidden):
        return torch.where(hidden, self.colour + self.value, images)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["LearnedFill", "OwnFill"])
def test_a_fill_is_told_the_channels_of_the_images(kind, channels, monkeypatch):
    monkeypatch.setitem(MODELS.module_dict, "OwnFill", Own)
    encoder = MaskedEncoder("test_vit", img_size=64, in_chans=channels, token="none")
    pixels = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    model = MIM(encoder, BlockMask(16, 0.5), [MaskedL1()], fill={"type": kind}, **pixels)
    images = torch.randint(0, 256, (2, channels, 64, 64), dtype=torch.uint8)
    shown = model(images, mode="predict")
    hidden = shown["hidden"].expand_as(images)
    assert torch.equal(shown["masked"][~hidden], shown["images"][~hidden])
    colour = model.fill.colour.detach().view(1, -1, 1, 1).expand_as(images)
    assert torch.equal(shown["masked"][hidden], colour[hidden])
    sum(model(images).values()).backward()
    assert model.fill.colour.grad.abs().max() > 0


def test_what_a_config_says_of_the_channels_is_kept_and_refused_on_others():
    images, hidden = torch.zeros(1, 4, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    for given in (1, 3):
        fill = make_fill({"type": "LearnedFill", "in_chans": given}, 4)
        with pytest.raises(ValueError, match=f"a colour of {given} channels and the images have 4; give it in_chans=4"):
            fill(images, hidden)
    for wrong in (0, True, "3", None):
        with pytest.raises(ValueError, match=r"LearnedFill: in_chans=.* must be a whole number of at least 1"):
            LearnedFill(wrong)


def test_names_and_functions_are_fills_and_unknown_names_are_one_sentence():
    assert make_fill("mean", 3) is fill_mean and make_fill(fill_mean, 3) is fill_mean
    with pytest.raises(ValueError, match="fill='meen' is not known"):
        make_fill("meen", 3)
    with pytest.raises(ValueError, match="type='LernedFill' is not a part of a2mim"):
        make_fill({"type": "LernedFill"}, 3)

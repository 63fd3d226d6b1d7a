"""Stripes on the image find the layout of a tensor without a word from the network."""

import pytest
import torch
from torch import Tensor, nn

from a2mim.wiring.layout import guess_layouts
from a2mim.wiring.measure import observe, read_stripes

SIDE, CELL, WIDTH = 96, 12, 25  # 8 x 8 cells; 25 channels could be a grid of 5 x 5
ORDER = torch.randperm(64, generator=torch.Generator().manual_seed(0))

FORMS = {
    "NCHW": lambda m: m,
    "NHWC": lambda m: m.permute(0, 2, 3, 1),
    "tokens": lambda m: m.flatten(2).transpose(1, 2),
    "tokens + 1": lambda m: torch.cat([m.mean((2, 3))[:, None], m.flatten(2).transpose(1, 2)], 1),
    "tokens + 4": lambda m: torch.cat([m.mean((2, 3))[:, None].expand(-1, 4, -1), m.flatten(2).transpose(1, 2)], 1),
    "tokens, channels first": lambda m: m.flatten(2),
}


def embed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, WIDTH, CELL, stride=CELL), nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))


def measured(form, images: Tensor | None = None):
    network = embed()
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) if images is None else images
    shape = form(network(images)).shape
    guesses = guess_layouts(shape, (SIDE, SIDE), unknown=True)
    with torch.no_grad():
        return read_stripes(lambda lit: {"key": form(network(lit))}, images, {"key": guesses})["key"], guesses


@pytest.mark.parametrize("kind", FORMS)
def test_every_layout_is_told_from_the_others_that_its_shape_allows(kind):
    layout, guesses = measured(FORMS[kind])
    assert (layout.kind, layout.grid, layout.evidence) == (kind, (8, 8), "stripes")
    assert len(guesses) >= 1
    feature_map = embed()(torch.randn(2, 3, SIDE, SIDE))
    assert torch.equal(layout.to_map(FORMS[kind](feature_map)), feature_map)


@pytest.mark.parametrize(
    "form",
    [
        lambda m: m.flatten(2).transpose(1, 2)[:, ORDER],
        lambda m: (
            m.flatten(2).transpose(1, 2).mean(1, keepdim=True) + torch.randn(64, 1, generator=torch.manual_seed(0))
        ),
        lambda m: m.flatten(2).transpose(1, 2).flip(1),
    ],
    ids=["permuted", "mixed", "reversed"],
)
def test_what_is_no_map_in_raster_order_stays_a_guess(form):
    layout, _ = measured(form)
    assert layout.evidence == "shape"


def test_what_modules_hand_on_is_seen_beside_the_output():
    network, images = embed(), torch.randn(1, 3, SIDE, SIDE)
    seen = observe(network, network, ["0", "2"], images)
    assert torch.equal(seen["2", ()], seen["", ()]) and torch.equal(seen["0", ()], network[0](images))
    assert not network[0]._forward_hooks

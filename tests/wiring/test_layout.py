import math

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from a2mim.encoder import MaskedEncoder
from a2mim.wiring.layout import Layout, cell_stride, guess_layouts, leaves, raster_table, replace_leaves
from a2mim.wiring.measure import HookPoint, read_intermediates, verify_outputs
from a2mim.wiring.sites import find_map, hook_target, study, unreached
from a2mim.wiring.tracing import trace, trial_copy

GRID = (3, 4)
ORDER = torch.randperm(
    12, generator=torch.Generator().manual_seed(0)
)  # cell that each token of a permuted layout holds

# A layout, and how a tensor in it is made from a map (B, D, h, w).
LAYOUTS = {
    "nchw": (Layout(1, (2, 3), GRID, GRID, raster_table(12)), lambda m: m),
    "nhwc": (Layout(3, (1, 2), GRID, GRID, raster_table(12)), lambda m: m.permute(0, 2, 3, 1)),
    "tokens": (Layout(2, (1,), (12,), GRID, raster_table(12)), lambda m: rearrange(m, "b d h w -> b (h w) d")),
    "prefix": (
        Layout(2, (1,), (14,), GRID, raster_table(12, prefix=2)),
        lambda m: torch.cat([m.new_full((len(m), 2, m.shape[1]), 7), rearrange(m, "b d h w -> b (h w) d")], 1),
    ),
    "suffix": (
        Layout(2, (1,), (13,), GRID, raster_table(12, positions=13)),
        lambda m: torch.cat([rearrange(m, "b d h w -> b (h w) d"), m.new_full((len(m), 1, m.shape[1]), 7)], 1),
    ),
    "permuted": (
        Layout(2, (1,), (13,), GRID, torch.cat([torch.tensor([-1]), ORDER])),
        lambda m: torch.cat(
            [m.new_full((len(m), 1, m.shape[1]), 7), rearrange(m, "b d h w -> b (h w) d")[:, ORDER]], 1
        ),
    ),
    "channels_then_tokens": (
        Layout(1, (2,), (12,), GRID, raster_table(12)),
        lambda m: rearrange(m, "b d h w -> b d (h w)"),
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_map_comes_back_from_every_layout(kind):
    layout, make = LAYOUTS[kind]
    feature_map = torch.randn(2, 5, *GRID)
    assert torch.equal(layout.to_map(make(feature_map)), feature_map)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_is_spread_stands_at_its_cells_and_is_zero_elsewhere(kind):
    layout, make = LAYOUTS[kind]
    values = torch.rand(2, *GRID) + 1
    features = make(torch.zeros(2, 5, *GRID))
    expected = make(values[:, None].expand(-1, 5, -1, -1))
    expected = torch.where(features == 7, torch.zeros(()), expected)
    assert torch.equal(layout.spread(values).expand_as(features), expected)
    assert layout.spread(values > 1.5).dtype == torch.bool


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_channel_vector_broadcasts_over_positions(kind):
    layout, make = LAYOUTS[kind]
    vector = torch.arange(5.0)
    added = make(torch.zeros(2, 5, *GRID)) + layout.write_channels(vector)
    assert torch.equal(layout.to_map(added), vector[:, None, None].expand(2, 5, *GRID))


def test_a_table_moves_with_its_module_and_stays_out_of_checkpoints():
    layout = LAYOUTS["permuted"][0]
    assert len(layout.state_dict()) == 0 and len(list(layout.buffers())) == 2


@pytest.mark.parametrize(
    ("shape", "prefix", "img_size", "expected"),
    [
        ((2, 256, 14, 14), 0, (224, 224), [(1, (14, 14), 0)]),
        ((2, 14, 14, 256), 0, (224, 224), [(3, (14, 14), 0)]),
        ((2, 197, 192), 1, (224, 224), [(2, (14, 14), 1)]),
        ((2, 196, 192), 1, (224, 224), [(2, (14, 14), 0)]),
        ((2, 24, 192), 0, (64, 96), [(2, (4, 6), 0)]),
        ((2, 1, 256), 0, (224, 224), []),  # PiT's class token
        ((2, 192), 0, (224, 224), []),
        ((2, 4, 197, 197), 1, (224, 224), []),  # attention
    ],
)
def test_shapes_are_read_as_maps_of_the_image(shape, prefix, img_size, expected):
    found = [(layout.channel, layout.grid, layout.first) for layout in guess_layouts(shape, img_size, prefix)]
    assert found == expected


@pytest.mark.parametrize(
    ("size", "cells", "declared", "expected"),
    [
        (224, 14, (), 16),
        (72, 5, (16,), 16),  # rounded up
        (72, 4, (16,), 16),  # rounded down
        (72, 5, (), 16),
        (28, 2, (14,), 14),
        (60, 4, (4, 8, 16, 32), 16),
        (240, 14, (), 240 / 14),  # CrossViT's second branch sees the image at 224 px
    ],
)
def test_the_stride_is_the_models_own_also_where_the_size_is_no_multiple(size, cells, declared, expected):
    assert cell_stride(size, cells, declared) == expected


def test_replaced_leaves_keep_the_nest():
    tensors = [torch.full((1,), float(i)) for i in range(4)]
    nest = (tensors[0], {"a": [tensors[1], 3, None]}, tensors[2])
    assert [path for path, _ in leaves(nest)] == [(0,), (1, "a", 0), (2,)]
    new = replace_leaves(nest, {(1, "a", 0): tensors[3]})
    assert type(new) is tuple and new[1]["a"] == [tensors[3], 3, None] and new[2] is tensors[2]


class Permuted(nn.Module):
    """Tokens in an order of its own behind a class token, as Hiera's; the output is per token, in the same order."""

    def __init__(self, mixing: bool = False):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, stride=8)
        self.block, self.last, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
        self.feature_info = [{"module": "block", "reduction": 8}, {"module": "last", "reduction": 8}]
        self.num_prefix_tokens, self.mixing = 1, mixing

    def start(self, images: Tensor) -> Tensor:
        tokens = rearrange(self.embed(images), "b d h w -> b (h w) d")[:, self.order]
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)

    def forward_features(self, images: Tensor) -> Tensor:
        tokens = self.head(self.last(self.block(self.start(images))))
        cls = tokens.mean(1, keepdim=True)
        return torch.cat([cls, tokens[:, 1:] + (cls if self.mixing else 0)], 1)

    def forward_intermediates(self, images, output_fmt, intermediates_only):
        first = self.block(self.start(images))
        maps = [tokens[:, 1:][:, self.order.argsort()] for tokens in (first, self.last(first))]
        return [rearrange(tokens, "b (h w) d -> b d h w", h=4) for tokens in maps]


def measured(model: nn.Module, images: Tensor) -> tuple[Layout, Layout]:
    """The layouts at block and at the output."""
    seen = trace(model, images)
    places = [HookPoint(c.name, c.guesses) for c in seen.calls if c.name in ("block", "last")]
    at_block, at_last = read_intermediates(model, images[:1], places)
    guesses = {(): guess_layouts(seen.output.shape, (32, 32), 1)}
    return at_block[()], verify_outputs(model, images, "last", at_last, guesses)[()]


def test_a_permuted_order_is_measured_at_the_site_and_at_the_output():
    model, images = Permuted(), torch.randn(2, 3, 32, 32)
    expected = torch.cat([torch.tensor([-1]), model.order])
    for layout in measured(model, images):
        assert torch.equal(layout.table, expected) and layout.grid == (4, 4)


def test_an_output_that_mixes_its_cells_keeps_the_guess():
    layout = measured(Permuted(mixing=True), torch.randn(2, 3, 32, 32))[1]
    assert layout.raster and layout.first == 1


def test_the_order_of_hieras_tokens_is_measured_in_timm():
    encoder = MaskedEncoder("hiera_tiny_224", img_size=64).eval()
    images, mask = torch.randn(1, 3, 64, 64), torch.tensor([[[True, False], [False, False]]])
    features = []
    encoder.model.get_submodule(encoder.site).register_forward_hook(lambda m, i, o: features.append(o))
    for hidden in (None, mask):
        encoder(images, hidden)
    changed = (features[0] != features[1]).any(2)[0].nonzero().flatten()
    # timm's own map of the same block shows where these tokens are: the upper left quarter of 4 x 4 cells.
    maps = encoder.model.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    (own,) = [m for m in maps if m.shape[2] == 4]
    quarter = rearrange(own[:, :, :2, :2], "1 d h w -> (h w) d")
    assert sorted(map(tuple, quarter.tolist())) == sorted(map(tuple, features[0][0, changed].tolist()))
    assert changed.tolist() != [0, 1, 4, 5]


class Branched(nn.Module):
    """timm declares the inner layer of a residual branch, around which the image passes, as Xception does."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.stage = nn.ModuleDict({"branch": nn.Conv2d(8, 8, 1)})
        self.outer = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 8, 2, stride=2)
        self.feature_info = [{"module": "stage.branch", "reduction": 4}]

    def forward_features(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return self.last(self.outer(x + self.stage["branch"](x)))


def test_a_declared_map_that_the_image_passes_by_is_not_chosen():
    assert study(Branched(), torch.randn(2, 3, 32, 32), "auto", 32).sites[0].name == "outer"


class Dead(nn.Module):
    """One parameter unused, one multiplied by zero, one behind a branch that starts at zero."""

    def __init__(self):
        super().__init__()
        self.used, self.zeroed, self.unused = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(3))
        self.scale = nn.Parameter(torch.zeros(3, 1, 1))

    def forward_features(self, images: Tensor) -> Tensor:
        return images + self.scale * self.used(images) + 0 * self.zeroed(images)


def test_dead_parameters_are_told_from_those_behind_a_zero_start():
    model = Dead()
    trial = trial_copy(model)
    assert unreached(trial, [trial.forward_features(torch.randn(2, 3, 8, 8))]) == ["zeroed.weight", "unused.weight"]
    assert (model.scale == 0).all()


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 1)
        self.stage = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)))

    def forward_features(self, images: Tensor) -> Tensor:
        return self.stage(self.shared(self.shared(self.stem(images))))


def test_a_module_that_runs_twice_is_no_site():
    model = Repeated()
    seen = trace(model, torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match="site 'shared' runs 2 times in one forward, so its output is not one map"):
        find_map(model, seen, "shared")


def test_a_hook_goes_to_the_last_child_of_a_sequential():
    assert hook_target(Repeated(), "stage") == "stage.0.1"


def test_depth_is_the_share_of_parametric_layers_that_ran():
    calls = trace(Repeated(), torch.randn(2, 3, 32, 32)).calls
    assert {c.name: c.depth for c in calls} == {
        "stem": 1 / 5, "stage.0.0": 4 / 5, "stage.0.1": 1, "stage.0": 1, "stage": 1
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_measuring_a_raster_layout_finds_the_raster(seed):
    torch.manual_seed(seed)
    encoder = MaskedEncoder("vit_tiny_patch16_224", img_size=(48, 64), site="blocks.2")
    layout = encoder.sites[0].layout
    assert (layout.grid, layout.first, layout.raster) == ((3, 4), 1, True)
    assert math.prod(layout.shape) == 13

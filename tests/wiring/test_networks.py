"""Networks that are not timm's: anybody's nn.Module by its dotted path, wrapped with its own keys."""

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

from a2mim.encoder import MaskedEncoder
from a2mim.wiring.networks import OwnNetwork, build_model, find_class

MODULE = '''
"""A package of the user's."""
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, tokens):
        return tokens + self.layer(tokens).relu()


class Tokens(nn.Module):
    """Class token and raster tokens, two layers, a classifier; an argument for the image size."""

    def __init__(self, width=24, image_size=64, in_channels=3):
        super().__init__()
        self.image_size = image_size
        self.embed = nn.Conv2d(in_channels, width, 16, stride=16)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 1 + (image_size // 16) ** 2, width))
        self.first, self.second = Block(width), Block(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(images), -1, -1), tokens], 1) + self.position
        return self.head(self.second(self.first(tokens))[:, 0])


class ChannelsFirst(nn.Module):
    """(B, D, N): channels before tokens; the number of channels could be a grid as well."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 25, 16, stride=16)
        self.mix, self.out = nn.Conv1d(25, 25, 1), nn.Conv1d(25, 25, 1)

    def forward(self, images):
        return self.out(self.mix(self.embed(images).flatten(2)))


class Pyramid(nn.Module):
    """Returns two maps, one of them under two names."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.coarse = nn.Conv2d(8, 12, 2, stride=2)

    def forward(self, images):
        fine = self.fine(images)
        coarse = self.coarse(fine)
        return {"fine": fine, "coarse": coarse, "last": coarse}


class Vector(nn.Module):
    """No map anywhere."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, images):
        return self.layer(images.mean((2, 3)))


def annotated() -> nn.Module:
    return Pyramid()


def unannotated():
    return Pyramid()
'''


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_nets", None)


def some_images(side: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def upper_right() -> Tensor:
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[0, 0, 1] = True
    return mask


# name, then what is found: site, its grid and layout, channels, strides
OWN = [
    ("torchvision.models.resnet18", "layer3", (4, 4), "NCHW", [512], [32]),
    ("torchvision.models.shufflenet_v2_x0_5", "stage3", (4, 4), "NCHW", [1024], [32]),
    ("torchvision.models.swin_t", "features.5", (4, 4), "NHWC", [768], [32]),
    ("torchvision.models.vgg11", "features.18", (4, 4), "NCHW", [512], [32]),
    ("my_nets.Tokens", "first", (4, 4), "tokens + 1", [24], [16]),
    ("my_nets.ChannelsFirst", "mix", (4, 4), "tokens, channels first", [25], [16]),
    ("my_nets.Pyramid", "fine", (8, 8), "NCHW", [8, 12], [8, 16]),
    ("my_nets.annotated", "fine", (8, 8), "NCHW", [8, 12], [8, 16]),
]


@pytest.mark.parametrize(("name", "site", "grid", "kind", "channels", "strides"), OWN)
def test_anybodys_network_is_wrapped_without_a_line_for_it(name, site, grid, kind, channels, strides):
    torch.manual_seed(0)
    encoder = MaskedEncoder(name, img_size=64, token="scaled")
    layout = encoder.sites[0].layout
    assert (encoder.site, layout.grid, layout.kind) == (site, grid, kind)
    assert (encoder.channels, encoder.strides) == (channels, strides)
    maps = encoder(some_images(), upper_right())
    assert [tuple(m.shape) for m in maps] == [(2, c, 64 // s, 64 // s) for c, s in zip(channels, strides, strict=True)]
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    assert [key for key, p in encoder.named_parameters() if p.requires_grad and (p.grad is None)] == []
    assert encoder.tokens[0].grad.any()


@pytest.mark.parametrize("name", ["torchvision.models.resnet18", "my_nets.Tokens", "my_nets.Pyramid"])
def test_the_keys_are_the_networks_own_and_a_copy_has_its_own_weights(name):
    torch.manual_seed(0)
    encoder = MaskedEncoder(name, img_size=64).eval()
    plain = find_class(name)()
    plain.load_state_dict(encoder.model.state_dict(), strict=True)
    other, images = copy.deepcopy(encoder), some_images()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.zero_()
    assert any(m.any() for m in encoder(images)) and not torch.equal(other(images)[0], encoder(images)[0])
    expected = plain.eval()(images)
    found = encoder.model.network(images)
    for key in expected if isinstance(expected, dict) else [...]:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)
    assert encoder.model(images).shape == (2, encoder.model.num_features)


def test_modes_and_types_reach_the_network():
    model = MaskedEncoder("torchvision.models.resnet18", img_size=64).model
    assert isinstance(model, OwnNetwork) and model.training and model.network.training
    model.eval()
    assert not model.network.training and not model.network.bn1.training
    assert model.double().network.conv1.weight.dtype == torch.float64


def test_a_classifier_gets_no_gradient_and_is_frozen():
    encoder = MaskedEncoder("my_nets.Tokens", img_size=64)
    assert encoder.frozen == ["cls", "head.weight", "head.bias"]


def test_a_network_can_be_given_as_it_is():
    network = find_class("my_nets.Tokens")(width=32)
    encoder = MaskedEncoder(network)
    assert encoder.model.network is network and encoder.img_size == (64, 64)
    assert encoder.arguments()["name"] == "my_nets.Tokens"


def test_sizes_and_channels_go_to_the_argument_that_the_network_has():
    built = build_model("my_nets.Tokens", 96, in_chans=5, model_args={"width": 16})
    name, model, size, model_args = built.name, built.model, built.img_size, built.model_args
    assert (name, size) == ("my_nets.Tokens", (96, 96))
    assert model_args == {"width": 16, "image_size": 96, "in_channels": 5}
    assert model(some_images(96, 5)).shape == (2, 16)


def test_a_network_rebuilt_from_the_arguments_takes_the_weights():
    encoder = MaskedEncoder("my_nets.Tokens", img_size=96, model_args={"width": 16})
    told = encoder.arguments()
    again = build_model(told["name"], tuple(told["img_size"]), told["in_chans"], model_args=told["model_args"]).model
    again.load_state_dict(encoder.model.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("my_nets.Vector", {}, "my_nets.Vector has no module that returns a feature map"),
        ("my_nets.Missing", {}, "my_nets has no Missing"),
        ("no_such_package.Net", {}, "No module named 'no_such_package'"),
        ("my_nets.unannotated", {}, "neither an nn.Module nor a function annotated to return one"),
        ("subprocess.Popen", {"model_args": {"args": "true"}}, "neither an nn.Module nor a function annotated"),
        ("my_nets.Tokens", {"model_args": {"widht": 3}}, "widht=3 .*unexpected keyword argument 'widht'"),
        ("my_nets.Pyramid", {"in_chans": 5}, "cannot be built with no arguments and 5 channels as one of in_chans"),
        ("resnet18", {"model_args": {"widht": 3}}, "resnet18 cannot be built with widht=3 .*change model_args"),
        ("my_nets.Tokens", {"drop_path_rate": 0.1}, "drop_path_rate and pretrained are for timm's models"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(name, arguments, words):
    with pytest.raises(ValueError, match=words) as error:
        MaskedEncoder(name, img_size=64, **arguments)
    assert "\n" not in str(error.value)


def test_a_module_that_misses_what_it_imports_says_so(tmp_path, monkeypatch):
    (tmp_path / "half_installed").mkdir()
    (tmp_path / "half_installed" / "__init__.py").touch()
    (tmp_path / "half_installed" / "nets.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="No module named 'no_such_package'"):
        MaskedEncoder("half_installed.nets.Net")


TRANSFORMERS = [
    ("ViTModel", dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64), 16),
    ("Dinov2Model", dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, patch_size=16), 16),
    ("SwinModel", dict(embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2), 32),
    ("ConvNextModel", dict(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]), 32),
    ("ResNetModel", dict(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]), 32),
]


@pytest.mark.parametrize(("kind", "model_args", "stride"), TRANSFORMERS, ids=[row[0] for row in TRANSFORMERS])
def test_a_vision_encoder_of_transformers_is_wrapped_through_its_configuration(kind, model_args, stride):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    encoder = MaskedEncoder(f"transformers.{kind}", img_size=64, model_args=model_args)
    images = some_images()
    assert encoder.strides == [stride]
    maps = encoder(images, upper_right())
    assert maps[0].shape[2:] == (64 // stride, 64 // stride)
    (maps[0] * torch.randn_like(maps[0])).sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []
    told = encoder.arguments()
    again = build_model(told["name"], 64, model_args=told["model_args"]).model
    again.load_state_dict(encoder.model.state_dict(), strict=True)
    grid = encoder.eval()(images)[0]
    tokens = encoder.model.network(images).last_hidden_state
    if tokens.ndim == 3:
        tokens = tokens[:, -grid[0, 0].numel() :].transpose(1, 2).reshape(grid.shape)
    torch.testing.assert_close(grid, tokens, rtol=0, atol=0)


def test_nothing_that_a_networks_forward_needs_is_missing_on_the_meta_device():
    with torch.device("meta"):
        encoder = MaskedEncoder("my_nets.Tokens", img_size=64)
    assert encoder.site in ("first", "second") and all(t.is_meta for t in encoder.state_dict().values())


class Mixed(nn.Module):
    """A permutation of tokens that no shape can tell."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Conv2d(3, 8, 8, stride=8), nn.Linear(8, 8)
        self.order = torch.randperm(64, generator=torch.Generator().manual_seed(0))

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.embed(images).flatten(2).transpose(1, 2)[:, self.order])


def test_permuted_tokens_are_not_taken_for_a_map():
    encoder = MaskedEncoder(Mixed(), img_size=64)
    assert encoder.model.layouts[()].kind == "NCHW"  # the embedding's: the deepest map whose order is known
    assert encoder.frozen == ["out.weight", "out.bias"]

"""A pyramid's maps are those of the network's own modules, at the strides that it states."""

import json
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from a2mim.export import pyramid
from a2mim.export.exporting import prove
from a2mim.export.levels import choose_levels, read_by_hand
from a2mim.export.target import ExportError, Subject
from a2mim.export.targets import possible
from a2mim.export.verify import verify
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

SIZE = 64
UNTOUCHED = {"recalibrated": False, "why": "no images were given", "clean": True}
XCIT = ("xcit_nano_12_p16_224", {"depth": 4, "embed_dim": 64, "num_heads": 2, "img_size": SIZE})
CONVNEXT = ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)})
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 8), "img_size": SIZE},
)


def build(name, arguments):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **arguments).eval()


def subject_of(name, arguments, size=SIZE):
    pixels = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, (size, size), "bicubic")
    return Subject(build(name, arguments), arguments, pixels)


def images(side=SIZE):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def timms_maps(model, x, indices):
    with torch.no_grad():
        return model.forward_intermediates(x, indices=indices, output_fmt="NCHW", intermediates_only=True)


@pytest.mark.parametrize(("name", "arguments"), [CONVNEXT, SWIN], ids=["ConvNeXt", "Swin"])
def test_a_hierarchical_network_gives_its_own_stages(name, arguments):
    model, x = build(name, arguments), images()
    found = read_by_hand(model, choose_levels(model, x), x)
    for (level, features), expected in zip(found.items(), timms_maps(model, x, [0, 1, 2, 3]), strict=True):
        assert torch.equal(features, expected), level
        assert features.shape[2] == SIZE // int(level.removeprefix("stride"))


def test_an_isotropic_network_gives_blocks_at_even_depths_resampled_as_in_feature2pyramid():
    model, x = build(XCIT[0], XCIT[1] | {"depth": 8}), images()
    levels = choose_levels(model, x)
    assert [level.module for level in levels] == ["blocks.1", "blocks.3", "blocks.5", "blocks.7"]
    assert [level.resampling for level in levels] == ["bilinear", "bilinear", "none", "max pooling"]
    maps = timms_maps(model, x, [1, 3, 5, 7])
    up = [F.interpolate(m, scale_factor=k, mode="bilinear") for m, k in zip(maps[:2], (4, 2), strict=True)]
    expected = [*up, maps[2], F.max_pool2d(maps[3], 2)]
    for features, one in zip(read_by_hand(model, levels, x).values(), expected, strict=True):
        assert torch.allclose(features, one, atol=1e-6)


def test_levels_that_share_a_stride_take_different_depths():
    model = build("resnet18", {"layers": (1, 1, 1, 1), "output_stride": 16})
    levels = choose_levels(model, images())
    assert [(level.module, level.own_stride) for level in levels] == [
        ("layer1.0", 4),
        ("layer2.0", 8),
        ("layer3.0", 16),
        ("layer4.0", 16),
    ]


def test_the_branches_of_crossvit_make_one_pyramid():
    model = build("crossvit_tiny_240", {"depth": ((1, 1, 0), (1, 1, 0)), "img_size": 120})
    levels = choose_levels(model, images(120))
    assert [level.path for level in levels] == [(0,), (0,), (1,), (1,)]
    shapes = [tuple(m.shape[2:]) for m in read_by_hand(model, levels, images(120)).values()]
    assert shapes == [(30, 30), (15, 15), (8, 8), (4, 4)]


def test_blocks_that_timm_does_not_declare_are_traced():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return x + self.inner(x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 16, 16)
            self.blocks = nn.ModuleList(Block() for _ in range(4))

        def forward_features(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return x

    levels = choose_levels(Network(), images())
    assert [level.module for level in levels] == [f"blocks.{i}" for i in range(4)]


@pytest.mark.slow
def test_the_graph_computes_the_maps_at_every_size(tmp_path, monkeypatch):
    monkeypatch.setattr(pyramid, "ONNX_NEEDS", ("a_library_that_nobody_has",))
    subject = subject_of(XCIT[0], XCIT[1] | {"depth": 1})
    receipt = prove(pyramid.TARGET, subject, tmp_path / "pyramid", UNTOUCHED)
    assert receipt["dynamic"] == ["batch", "height", "width"] and receipt["formats"] == ["torch-export"]
    assert receipt["largest_difference"] <= 1e-5
    assert [row["output"] for row in receipt["levels"]] == [*receipt["outputs"]]
    program = torch.export.load(tmp_path / "pyramid" / "pyramid.pt2").module()
    x = torch.randn(3, 3, 96, 160)
    levels = choose_levels(subject.model, x[:2])
    with torch.no_grad():
        found = program(x)
    for name, expected in read_by_hand(subject.model, levels, x).items():
        assert (found[name] - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert "a_library_that_nobody_has is not installed" in (tmp_path / "pyramid" / "README.md").read_text()
    assert verify(tmp_path / "pyramid")[0]["mode"] == "loaded"


def test_a_wrong_map_is_not_handed_over(tmp_path, monkeypatch):
    right = pyramid.as_map
    monkeypatch.setattr(pyramid, "as_map", lambda *inputs: right(*inputs).flip(3))
    with pytest.raises(ExportError, match="the pyramid of convnext_atto differs"):
        prove(pyramid.TARGET, subject_of(*CONVNEXT), tmp_path / "pyramid", UNTOUCHED)
    assert not (tmp_path / "pyramid").exists()


@pytest.mark.slow
def test_onnx_computes_the_same_maps(tmp_path):
    pytest.importorskip("onnxruntime")
    receipt = prove(pyramid.TARGET, subject_of(*CONVNEXT), tmp_path / "pyramid", UNTOUCHED)
    assert receipt["formats"] == ["torch-export", "onnx"] and receipt["largest_difference"] <= 1e-5
    assert json.loads((tmp_path / "pyramid" / "preprocessing.json").read_text())["img_size"] == [SIZE, SIZE]


def test_a_network_without_maps_is_refused_by_name_and_reason():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 8))
    network.forward_features = network.forward
    network.pretrained_cfg = {"architecture": "a_flat_network"}
    pixels = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, (SIZE, SIZE), "bicubic")
    with pytest.raises(ValueError, match=r"a_flat_network cannot be exported to pyramid: .*no module returns a map"):
        possible(Subject(network, {}, pixels), ["pyramid"])


def test_the_resampling_is_told(tmp_path):
    subject = SimpleNamespace(model=build(*XCIT), images=images())
    levels = choose_levels(subject.model, subject.images)
    notes = pyramid._notes(read_by_hand(subject.model, levels, subject.images), levels, True, "")
    assert "`stride4`: (B, 64, 16, 16), the output of `blocks.0` at stride 16, bilinear" in notes
    assert "without parameters" in notes

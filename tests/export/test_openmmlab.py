"""Backbones of mmseg and mmdet from any encoder with four maps, and the configurations that train on them."""

import importlib.util
import json

import pytest
import timm
import torch
from mmengine.config import Config

from a2mim.export import exporting, openmmlab, openmmlab_dense
from a2mim.export.contracts import check_contract
from a2mim.export.openmmlab_training import FILES
from a2mim.export.receipt import state_tensors
from a2mim.export.target import Subject
from a2mim.export.targets import TARGETS, possible
from a2mim.export.verify import lines_of, read_receipt
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

SIZE = 64
UNTOUCHED = {"recalibrated": False, "why": "no images were given", "clean": True}
NAMES = {
    "xcit": ("xcit_nano_12_p16_224", {"depth": 4, "embed_dim": 64, "num_heads": 2, "img_size": SIZE}),
    "xcit8": ("xcit_nano_12_p8_224", {"depth": 4, "embed_dim": 64, "num_heads": 2, "img_size": SIZE}),
    "vit": ("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 32, "num_heads": 2, "img_size": SIZE}),
    "xvit": ("xvit_tiny_p16_224", {"depth": 4, "img_size": SIZE}),
    "linglo": ("linglo_b1", {"depths": (1, 1, 1, 1), "img_size": SIZE}),
    "mobilenet": ("mobilenetv3_small_050", {}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
}


def subject_of(key, **more):
    name, arguments = NAMES[key]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **arguments, **more).eval()
    pixels = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, (SIZE, SIZE), "bicubic")
    return Subject(model, arguments | more, pixels)


@pytest.fixture
def unchecked(monkeypatch):
    """The check in a fresh process is left to the tests that mean it."""
    monkeypatch.setattr(exporting, "recheck", lambda *_: {"problem": "", "mode": "loaded"})


@pytest.mark.parametrize(
    ("key", "rescales"), [("xcit", (4, 2, 1, 0.5)), ("xcit8", (2, 1, 0.5, 0.25)), ("mobilenet", ())]
)
def test_the_backbone_s_maps_are_those_of_the_chosen_blocks(key, rescales):
    subject = subject_of(key)
    native, neck, _ = openmmlab_dense.backbone(subject, "mmseg")
    assert neck.rescales == rescales and native.config["type"] == "mmpretrain.TIMMBackbone"
    with torch.no_grad():
        expected = subject.model.forward_intermediates(
            subject.images, indices=native.config["out_indices"], output_fmt="NCHW", intermediates_only=True
        )
    assert all(torch.equal(one, other) for one, other in zip(native.maps, expected, strict=True))
    assert neck.channels == tuple(m.shape[1] for m in native.maps)


@pytest.mark.parametrize("key", ["vit", "xvit", "linglo"])
def test_the_file_has_the_keys_that_timm_asks_for(key, tmp_path):
    written = openmmlab.write_dense(subject_of(key), tmp_path, "mmseg")
    assert check_contract(written.contract, state_tensors(written.tensors)) == ""
    assert not any("head" in key or key.endswith("model.norm.weight") for key in written.tensors)
    backbone = Config.fromfile(tmp_path / "encoder.py", import_custom_modules=False).model.backbone
    assert backbone.get("dynamic_img_size", False) == (key == "vit")  # its position embedding is resized with the image


@pytest.mark.parametrize("library", ["mmseg", "mmdet"])
@pytest.mark.parametrize("key", ["xcit", "convnext"])
def test_the_configuration_that_trains_is_whole(library, key, tmp_path, unchecked):
    folder = tmp_path / library
    receipt = exporting.prove(TARGETS[library], subject_of(key), folder, UNTOUCHED)
    text = (folder / FILES[library]).read_text()
    assert "mmseg.models" in text or library == "mmseg" or key == "convnext"  # whose neck a detector then takes
    config = Config.fromfile(folder / FILES[library], import_custom_modules=False)
    assert config.model.backbone.type == receipt["class"]
    neck = config.model.get("neck")
    pyramid = [one for one in (neck if isinstance(neck, list) else [neck]) if one and "Feature2Pyramid" in one["type"]]
    assert len(pyramid) == (key == "xcit")
    assert config.train_cfg and config.optim_wrapper.optimizer.type == "AdamW" and config.train_dataloader.dataset
    if library == "mmseg":
        assert config.model.decode_head.in_channels == receipt["neck"]["channels"]


def test_maps_that_are_no_pyramid_are_refused_by_name_and_reason():
    crossvit = timm.create_model("crossvit_tiny_240", num_classes=0, depth=((1, 1, 0),), img_size=120).eval()
    pixels = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, (120, 120), "bicubic")
    with pytest.raises(ValueError, match=r"crossvit_tiny_240 cannot be .* mmseg: .* strides of 12, 12, 17\.14"):
        possible(Subject(crossvit, {"depth": ((1, 1, 0),), "img_size": 120}, pixels), ["mmseg"])
    name, arguments = NAMES["vit"]
    shallow = arguments | {"depth": 2}
    model = timm.create_model(name, num_classes=0, **shallow).eval()
    pixels = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, (SIZE, SIZE), "bicubic")
    with pytest.raises(ValueError, match=f"{name} cannot be exported to mmdet: .* fewer than four maps"):
        possible(Subject(model, shallow, pixels), ["mmdet"])


def test_a_stranger_s_neck_is_refused(tmp_path, unchecked):
    folder = tmp_path / "mmseg"
    exporting.prove(openmmlab.MMSEG, subject_of("xcit"), folder, UNTOUCHED)
    receipt = read_receipt(folder)
    assert "segmenter.py" in lines_of(folder, receipt)
    for change in ({"crop": "__import__('os')"}, {"rescales": [3]}, {"channels": [1, 2]}):
        changed = json.loads(json.dumps(receipt))
        changed["neck"] |= change
        with pytest.raises(ValueError, match="states a neck that a2mim does not write"):
            lines_of(folder, changed)


@pytest.mark.slow
def test_the_proof_runs_as_far_as_what_is_installed_allows(tmp_path):
    receipt = exporting.prove(openmmlab.MMSEG, subject_of("xcit"), tmp_path / "mmseg", UNTOUCHED)
    if importlib.util.find_spec("mmpretrain"):
        assert receipt["mode"] == "loaded" and receipt["largest_difference"] <= 1e-5
        assert receipt["reached"].startswith(("the maps of the backbone; mmseg cannot be imported", "the gradients of"))
    else:
        assert receipt["mode"] == "contract only" and receipt["not_installed"] == ["mmpretrain"]

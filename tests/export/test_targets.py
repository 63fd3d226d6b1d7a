"""Every target: what it cannot take is refused with the reason, and one wrong key never passes, written or stored."""

import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from a2mim.cli import main
from a2mim.export import TARGETS, ExportError, export, exporting
from a2mim.export.card import tell_training
from a2mim.export.check import check, largest_difference, read_weights
from a2mim.export.contracts import CONTRACTS, RESNETS, check_contract, of_torchvision
from a2mim.export.detectron2_pickle import rename as rename_for_detectron2
from a2mim.export.openmmlab_native import merging, native
from a2mim.export.receipt import hash_files
from a2mim.export.target import Subject, Target
from a2mim.export.targets import possible
from a2mim.export.ultralytics_model import normalization, tree
from a2mim.export.verify import lines_of, read_receipt, recheck, verify
from a2mim.files import write_json
from a2mim.pixels import Preprocessing

SIZE = 32
PREPROCESSING = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.2, 0.3), (SIZE, SIZE))
UNTOUCHED = {"recalibrated": False, "why": "no images were given", "clean": True}
STORED = (
    "timm",
    "transformers",
    "torchvision",
    "mmpretrain",
    "mmdet",
    "mmseg",
    "detectron2",
    "ultralytics",
    "safetensors",
)


def shaken(model):
    """No bias, norm or statistic as it is initialised: a layer that is exchanged for another shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.ndim < 2:
                value.mul_(1 + 0.2 * torch.rand(value.shape, generator=generator))
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return model.eval()


def subject_of(name, **arguments):
    torch.manual_seed(0)
    return Subject(shaken(timm.create_model(name, num_classes=0, **arguments)), arguments, PREPROCESSING, ["fc.weight"])


@pytest.fixture(scope="module")
def resnet():
    return subject_of("resnet18")


@pytest.fixture(scope="module")
def written(resnet, tmp_path_factory):
    """Target -> its folder, complete but for the check in a fresh process, which other tests run."""
    root, patch = tmp_path_factory.mktemp("targets"), pytest.MonkeyPatch()
    patch.setattr(exporting, "recheck", lambda *_: {"problem": "", "mode": "loaded"})
    for name in STORED:
        exporting.prove(TARGETS[name], resnet, root / name, UNTOUCHED)
    patch.undo()
    return root


def rename(tensors, key):
    tensors[key + "_"] = tensors.pop(key)


def drop(tensors, key):
    del tensors[key]


def reshape(tensors, key):
    tensors[key] = tensors[key][:-1].contiguous()


def change(tensors, key):
    tensors[key] = tensors[key] + 1e-3


TAMPERS = {
    rename: "1 missing .*; 1 unexpected",
    drop: "1 missing",
    reshape: "1 of another shape",
    change: "another value",
}


def tamper_file(folder, proof, tamper):
    """Changes one tensor of the file, in the file's own form."""
    path = folder / proof["weights"]
    tensors = read_weights(path)
    key = next(key for key in tensors if re.search(r"(bn1|conv1\.norm|\.1)\.weight$", key))
    tamper(tensors, key)
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            header = file.metadata()
        save_file(tensors, path, metadata=header)
    elif path.suffix == ".pkl":
        content = {
            "model": {k: v.numpy() for k, v in tensors.items()},
            "__author__": "a2mim",
            "matching_heuristics": True,
        }
        path.write_bytes(pickle.dumps(content, protocol=4))
    elif path.suffix == ".pt":
        torch.save({"model": tree(tensors)}, path)
    else:
        torch.save({"state_dict": tensors, "meta": {}} if proof["file_prefix"] else tensors, path)


@pytest.fixture
def copied(written, tmp_path, monkeypatch):
    """A function that gives a copy of a target's folder, to be spoiled."""
    monkeypatch.chdir(tmp_path)  # check() goes into the folder
    return lambda name: Path(shutil.copytree(written / name, tmp_path / name))


def request_of(folder):
    receipt = read_receipt(folder)
    return {"folder": str(folder), **receipt["check"], "tensors": receipt["tensors"]}


@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda tamper: tamper.__name__)
@pytest.mark.parametrize("name", STORED)
def test_one_wrong_tensor_in_the_file_is_found(copied, name, tamper):
    folder = copied(name)
    request = request_of(folder) | {"packages": ["no_such_package"]}  # so that nothing is loaded
    assert check(request)["problem"] == "" and check(request)["mode"] == "contract only"
    tamper_file(folder, request, tamper)
    assert re.search(f"{request['weights']} do not agree: .*{TAMPERS[tamper]}", check(request)["problem"])


@pytest.mark.parametrize("name", ["timm", "transformers", "torchvision", "mmpretrain"])
def test_one_wrong_key_is_found_in_what_the_loader_made_of_it(copied, name):
    """As if nobody had looked into the file: transformers and mmpretrain go on with random values, in silence."""
    pytest.importorskip(name) if name == "torchvision" else find_or_skip(name)
    folder = copied(name)
    receipt = read_receipt(folder)
    receipt["check"]["weights"] = ""
    if name == "transformers":  # of the others, other tests show that they load
        assert recheck(folder, receipt, lines_of(folder, receipt))["problem"] == ""
    lines = lines_of(folder, receipt)
    tamper_file(folder, read_receipt(folder)["check"], rename)
    problem = recheck(folder, receipt, lines)["problem"]
    strict = "RuntimeError: Error.s. in loading"
    silent = "^keys do not agree: .*1 of another value"
    assert re.search(strict if name in ("timm", "torchvision") else silent, problem), problem


def find_or_skip(name):
    """Without importing it: the fresh process does."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("name", STORED)
def test_an_export_that_loses_a_key_fails_and_leaves_nothing(resnet, tmp_path, monkeypatch, name):
    def write(subject, folder):
        told = TARGETS[name].write(subject, folder)
        tamper_file(folder, {"weights": told.weights, "file_prefix": told.file_prefix}, drop)
        return told

    monkeypatch.setattr(exporting, "recheck", lambda folder, proof, *_: in_this_process(monkeypatch, folder, proof))
    with pytest.raises(ExportError, match=f"{name} does not get back the resnet18 .*1 missing"):
        exporting.prove(Target(name, write, TARGETS[name].lines), resnet, tmp_path / name, UNTOUCHED)
    assert not list(tmp_path.iterdir())


def in_this_process(monkeypatch, folder, proof):
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        return check({"folder": str(folder), **proof["check"], "tensors": proof["tensors"]})


@pytest.mark.parametrize("name", STORED)
def test_a_key_map_that_is_wrong_does_not_meet_the_documented_keys(written, name):
    receipt = read_receipt(written / name)
    contract, tensors = receipt["check"]["contract"], dict(receipt["tensors"])
    assert check_contract(contract, tensors) == ""
    first = next(iter(tensors))
    assert "1 missing" in check_contract(contract, {key: tensors[key] for key in tensors if key != first})
    assert "1 of another shape" in check_contract(contract, tensors | {first: {"shape": [1, 2, 3]}})
    assert "1 unexpected" in check_contract(contract, tensors | {"more": {"shape": []}})


def test_verify_notices_every_changed_or_missing_file(copied):
    folder = copied("timm")
    (found,) = verify(folder.parent)  # every folder below
    assert found["folder"] == str(folder) and found["mode"] == "loaded"
    assert found["largest_difference"] <= 1e-5 and found["keys"]["missing"] == []
    with (folder / "README.md").open("a") as file:
        file.write(" ")
    (folder / "config.json").unlink()
    with pytest.raises(ExportError, match=r"README.md is not the same, config.json is missing\.$"):
        verify(folder)
    (folder / "receipt.json").write_text("{}")
    with pytest.raises(ValueError, match=r"receipt.json lacks target, .* export the encoder again\.$"):
        verify(folder)
    (folder / "receipt.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no receipt\.json"):
        verify(folder)


def test_verify_notices_a_wrong_key_even_where_the_hashes_were_made_to_fit(copied):
    folder = copied("timm")
    receipt = read_receipt(folder)
    tamper_file(folder, receipt["check"], reshape)
    write_json(folder / "receipt.json", receipt | {"sha256": hash_files(folder)})
    with pytest.raises(ExportError, match=r"does not give timm the resnet18: .* 1 of another shape \(bn1.weight\)"):
        verify(folder)


@pytest.mark.parametrize("tamper", [rename, drop, reshape], ids=lambda tamper: tamper.__name__)
@pytest.mark.parametrize("name", STORED)
def test_verify_fails_for_every_target_on_one_wrong_key(copied, monkeypatch, name, tamper):
    """By the file's hash, and by its keys where the hash was made to fit; those are read before anything is loaded."""
    folder = copied(name)
    receipt = read_receipt(folder)
    tamper_file(folder, receipt["check"], tamper)
    weights = re.escape(receipt["check"]["weights"])
    with pytest.raises(ExportError, match=rf"{weights} is not the same\.$"):
        verify(folder)
    write_json(folder / "receipt.json", receipt | {"sha256": hash_files(folder)})
    in_this_one = "a2mim.export.verify.check_in_fresh_process"
    monkeypatch.setattr(in_this_one, lambda folder, proof, *_: check({"folder": str(folder), **proof}))
    with pytest.raises(ExportError, match=rf"does not give {name} the resnet18: .*{weights} .*{TAMPERS[tamper]}"):
        verify(folder)


def test_another_environments_interpreter_is_asked_and_a_dead_one_is_a_problem(copied, tmp_path):
    dead = tmp_path / "python"
    dead.write_text("#!/bin/sh\necho no torch here >&2\nexit 3\n")
    dead.chmod(0o755)
    with pytest.raises(ExportError, match=r"died with code 3: no torch here\.$"):
        verify(copied("timm"), str(dead))
    with pytest.raises(ValueError, match="is no interpreter that can be started"):
        verify(tmp_path / "timm", str(tmp_path / "none"))


def test_a_proof_needs_features_to_compare():
    images = {"images": torch.zeros(1)}
    assert largest_difference({"pooled": torch.ones(2)}, images) is None
    assert largest_difference({"pooled": torch.ones(2)}, images | {"pooled": torch.ones(2)}) == 0.0


def test_what_a_library_prints_around_the_answer_does_not_matter(copied):
    folder = copied("timm")
    loud = "import atexit\nprint('hello')\natexit.register(print, 'bye')\n"
    lines = lines_of(folder, read_receipt(folder))
    assert recheck(folder, read_receipt(folder), loud + lines)["problem"] == ""


def test_preprocessing_that_scales_otherwise_fails(copied):
    folder = copied("timm")
    receipt = read_receipt(folder)
    lines = lines_of(folder, receipt)
    receipt["check"]["preprocessing"]["mean"] = [0.6, 0.5, 0.4]
    assert "another mean, deviation or order of channels" in recheck(folder, receipt, lines)["problem"]


def test_our_own_architectures_say_that_they_need_a2mim_and_do(tmp_path):
    subject = subject_of("xvit_tiny_p16_224", depth=1, img_size=SIZE)
    folder = tmp_path / "timm"
    receipt = exporting.prove(TARGETS["timm"], subject, folder, UNTOUCHED)
    assert receipt["mode"] == "loaded" and "a2mim" in read_receipt(folder)["check"]["packages"]
    lines = lines_of(folder, read_receipt(folder))
    assert "import a2mim  # which makes the architecture known" in lines
    assert "Unknown model" in recheck(folder, read_receipt(folder), lines.replace("import a2mim ", "# "))["problem"]


@pytest.mark.parametrize(
    ("name", "arguments", "kind"),
    [
        ("xcit_nano_12_p16_224", {"depth": 1, "img_size": SIZE}, "XCiT"),
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": SIZE, "global_pool": "avg"}, "VisionTransformer"),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (1, 2, 1, 1), "img_size": 112, "window_size": 7},
            "SwinTransformer",
        ),
        ("convnextv2_atto", {"depths": (1, 1, 1, 1)}, "ConvNeXt"),
    ],
)
def test_mmpretrains_own_classes_compute_the_same(tmp_path, name, arguments, kind):
    subject = subject_of(name, **arguments)
    side = arguments.get("img_size", SIZE)
    subject.preprocessing = PREPROCESSING.at_size(side)
    receipt = exporting.prove(TARGETS["mmpretrain"], subject, tmp_path / "mmpretrain", UNTOUCHED)
    assert receipt["class"] == kind
    if importlib.util.find_spec("mmpretrain"):
        assert receipt["mode"] == "loaded" and receipt["largest_difference"] <= 1e-5
        assert not receipt["keys"]["missing"] and not receipt["keys"]["unexpected"]
    else:
        assert receipt["mode"] == "contract only" and receipt["not_installed"] == ["mmpretrain"]


def test_swin_goes_through_timm_where_its_windows_are_padded():
    """timm shifts them before it pads, OpenMMLab after: 7 % of the largest feature apart at 64 pixels."""
    for side, whole in ((64, False), (224, True)):
        subject = subject_of("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), img_size=side)
        subject.preprocessing = PREPROCESSING.at_size(side)
        assert (native(subject) is not None) == whole


def test_what_cannot_be_is_refused_with_the_reason_before_anything_is_written(tmp_path):
    subject = subject_of("vit_tiny_patch16_224", depth=1, img_size=SIZE)
    with pytest.raises(ValueError, match=r"to torchvision: .* resnet18, .*; to detectron2: .* ResNets") as caught:
        possible(subject, ["timm", "torchvision", "detectron2"])
    assert "timm" not in str(caught.value).replace("timm\n", "").split("exported to")[1].split(":")[0]
    assert {"timm", "transformers", "mmpretrain", "safetensors"} <= set(possible(subject, ["all"]))
    assert not {"torchvision", "mmdet", "mmseg", "detectron2", "ultralytics"} & set(possible(subject, ["all"]))
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 cannot be exported to torchvision"):
        export("vit_tiny_patch16_224", ["timm", "torchvision"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    changed = subject_of("resnet18", in_chans=5)
    changed.preprocessing = replace(PREPROCESSING, mean=(0.5,) * 5, std=(0.2,) * 5)
    with pytest.raises(ValueError, match=r"it was built with \{'in_chans': 5\}, which torchvision's own resnet18"):
        possible(changed, ["torchvision"])


def test_a_resnet_goes_everywhere(resnet):
    # onnx only where onnx is installed; network is for what is not timm's
    assert {*possible(resnet, ["all"]), "onnx", "network"} == set(TARGETS)


@pytest.mark.parametrize("name", RESNETS)
def test_the_documented_keys_of_torchvision_are_torchvisions(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    real = {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.startswith("fc.")}
    assert of_torchvision(name) == real


def test_detectron2s_names_are_those_of_its_model_zoo():
    """Names and number as in detectron2's converted torchvision R-50, which its docs tell how to make."""
    shapes = CONTRACTS["detectron2"](name="resnet50")
    assert len(shapes) == 318
    assert shapes["stem.conv1.norm.running_var"] == (64,) and shapes["res2.0.shortcut.weight"] == (256, 64, 1, 1)
    assert shapes["res3.0.conv2.weight"] == (128, 128, 3, 3) and shapes["res5.2.conv3.norm.bias"] == (2048,)
    assert rename_for_detectron2("layer4.0.downsample.1.running_mean") == "res5.0.shortcut.norm.running_mean"
    assert rename_for_detectron2("layer1.2.bn3.weight") == "res2.2.conv3.norm.weight"


def test_detectron2s_yaml_undoes_its_defaults(written):
    text = (written / "detectron2" / "backbone.yaml").read_text()
    asked = yaml.safe_load(text)
    resnets, model = asked["MODEL"]["RESNETS"], asked["MODEL"]
    assert resnets["STRIDE_IN_1X1"] is False and resnets["DEPTH"] == 18 and resnets["RES2_OUT_CHANNELS"] == 64
    assert asked["INPUT"]["FORMAT"] == "RGB" and model["BACKBONE"]["FREEZE_AT"] == 0 and resnets["NORM"] == "BN"
    assert model["PIXEL_MEAN"] == [102, 127.5, 153] and model["PIXEL_STD"] == [51, 51, 76.5]


def test_ultralytics_first_layer_is_the_normalisation():
    layer = torch.nn.BatchNorm2d(3).eval()
    layer.load_state_dict({key.split(".")[-1]: value for key, value in normalization(PREPROCESSING).items()})
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    torch.testing.assert_close(layer(pixels), (pixels - mean) / std)


def test_a_patch_mergings_order_is_that_of_unfold():
    images = torch.randn(1, 4, 4, 5)  # (B, H, W, C)
    theirs = torch.nn.functional.unfold(images.permute(0, 3, 1, 2), 2, stride=2)[0].T  # (N, C·h·w)
    for n, (row, column) in enumerate((r, c) for r in (0, 2) for c in (0, 2)):
        own = [images[0, row + h, column + w] for w in (0, 1) for h in (0, 1)]  # timm: left above, left below, …
        assert torch.equal(merging(torch.cat(own)), theirs[n])


def test_a_hub_takes_the_folder_as_it_is_and_timm_and_transformers_load_it_from_there(written, tmp_path):
    """The hub's cache, as huggingface_hub lays it out after a download; no network is used."""
    find_or_skip("transformers")
    snapshot = tmp_path / "hub" / "models--someone--encoder" / "snapshots" / ("0" * 40)
    shutil.copytree(written / "timm", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    front = yaml.safe_load((snapshot / "README.md").read_text().split("---")[1])
    assert "license" not in front and front["library_name"] == "timm"
    assert "num_classes" not in json.loads((snapshot / "config.json").read_text())["model_args"]
    lines = """
import a2mim, timm, torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification
images = torch.randn(2, 3, 32, 32)
own = timm.create_model("hf-hub:someone/encoder", pretrained=True, num_classes=0).eval()
theirs = AutoModel.from_pretrained("someone/encoder").eval()
torch.testing.assert_close(theirs(images).pooler_output, own(images))
assert AutoImageProcessor.from_pretrained("someone/encoder").data_config["mean"] == (0.4, 0.5, 0.6)
assert AutoModelForImageClassification.from_pretrained("someone/encoder", num_labels=3)(images).logits.shape == (2, 3)
print("loaded")
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", lines], env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("loaded\n"), done.stderr


def test_the_card_says_what_is_known(resnet, written, tmp_path):
    text = (written / "torchvision" / "README.md").read_text()
    for said in ("No licence was chosen", "`fc.weight`", "mean 0.4, 0.5, 0.6", "32 × 32 pixels", "is not known"):
        assert said in text, said
    summary = {"asked": {"config": "configs/a.py", "data": "flowers", "laptop": True}, "steps": 40}
    write_json(tmp_path / "summary.json", summary)
    told = "the recipe `a.py` at laptop scale, on `flowers`, 40 steps."
    assert all(tell_training(place).endswith(told) for place in (tmp_path, tmp_path / "encoder"))
    write_json(tmp_path / "summary.json", summary | {"versions": "of another type"})
    assert tell_training(tmp_path).endswith(told)


def test_the_commands_answer_with_a_line_and_a_status(copied, tmp_path, capsys):
    folder = copied("timm")
    assert main(["verify", str(folder)]) == 0
    assert "timm computes the same features (largest difference" in capsys.readouterr().out
    tamper_file(folder, read_receipt(folder)["check"], change)
    assert main(["verify", str(folder)]) == 1
    assert "model.safetensors is not the same" in capsys.readouterr().err
    out = str(tmp_path / "out")
    assert main(["export", "resnet18", "--to", "detectron2", "--out", out, "--no-calibration", "--license", "mit"]) == 0
    assert "contract only, as detectron2 is not installed" in capsys.readouterr().out
    assert "license: mit" in (tmp_path / "out" / "detectron2" / "README.md").read_text()

"""The timm folder: equal features in a fresh process, loadable in every way timm offers, and a check that can fail."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from a2mim.checkpoints import FORMAT
from a2mim.encoder import MaskedEncoder
from a2mim.export import ExportError, export, export_timm_folder
from a2mim.export.receipt import hash_tensors
from a2mim.export.timm_folder import write_timm_folder
from a2mim.weights.loading import load_encoder

SIZE = 64
PREPROCESSING = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "img_size": [SIZE, SIZE], "interpolation": "bilinear"}


def encoder_of(name, **kwargs):
    torch.manual_seed(0)
    return MaskedEncoder(name, img_size=SIZE, **kwargs)


@pytest.fixture(scope="module", params=["resnet18", "xcit_nano_12_p16_224"])
def exported(request, tmp_path_factory):
    """(encoder, folder, receipt)."""
    encoder, folder = encoder_of(request.param).train(), tmp_path_factory.mktemp("export")
    batches = [torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))] * 2
    receipt = export_timm_folder(encoder.model, encoder.arguments(), PREPROCESSING, folder, batches, "a test")
    return encoder, folder, receipt


def test_the_receipt_tells_what_was_proven(exported):
    encoder, folder, receipt = exported
    stored = json.loads((folder / "receipt.json").read_text())
    told = {key: value for key, value in receipt.items() if key != "folder"}  # which is of this machine
    assert told.items() <= stored.items() and len(stored["tensors"]) == len(encoder.model.state_dict())
    assert receipt["folder"] == str(folder) and "folder" not in stored
    files = ["README.md", "config.json", "model.safetensors", "receipt.json", "reference.npz"]
    assert sorted(p.name for p in folder.iterdir()) == files
    state = encoder.model.state_dict()
    assert receipt["keys"] == {
        **{"loaded": len(state), "missing": [], "unexpected": []},
        **{"of another shape": [], "of another value": []},
    }
    assert 0 <= receipt["largest_difference"] <= 1e-5
    assert receipt["frozen"] == encoder.frozen and receipt["source"] == "a test"
    assert receipt["tensors_sha256"] == hash_tensors(state)
    assert {"python", "torch", "timm"} <= set(receipt["versions"])


def test_batchnorm_is_recalibrated_and_recorded(exported):
    encoder, folder, receipt = exported
    assert receipt["batchnorm"] == {"recalibrated": True, "images": 8}
    if encoder.name == "resnet18":
        images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            mean = encoder.model.conv1(images).mean(dim=(0, 2, 3))
        torch.testing.assert_close(load_file(folder / "model.safetensors")["bn1.running_mean"], mean)


def test_the_config_states_input_and_pooling_and_no_number_of_classes(exported):
    encoder, folder, _ = exported
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == encoder.name and config["num_features"] == encoder.model.num_features
    assert "num_classes" not in config["model_args"] and config["num_classes"] == 0
    assert config["model_args"]["global_pool"] == config["global_pool"] != ""
    cfg = config["pretrained_cfg"]
    assert cfg["input_size"] == [3, SIZE, SIZE] and cfg["mean"] == PREPROCESSING["mean"]
    assert cfg["fixed_input_size"] == (encoder.name != "resnet18")
    assert cfg["pool_size"] == ([2, 2] if encoder.name == "resnet18" else None)
    assert cfg["classifier"] and cfg["first_conv"] and cfg["license"] is None
    assert not {"url", "hf_hub_id"} & set(cfg)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_classes": 0},
        {"num_classes": 7},
        {"num_classes": 0, "in_chans": 1},
        {"num_classes": 3, "in_chans": 5},
        {"features_only": True},
        {"num_classes": 0, "img_size": 96},
        {"num_classes": 0, "global_pool": "avg"},
    ],
    ids=str,
)
def test_timm_loads_it_whatever_the_user_asks_for(exported, kwargs):
    encoder, folder, _ = exported
    if encoder.name == "resnet18":
        kwargs = {key: value for key, value in kwargs.items() if key != "img_size"}
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()
    stored, last = load_file(folder / "model.safetensors"), "layer4.1.conv2.weight"
    last = last if last in stored else "blocks.11.attn.qkv.weight"
    own = {key.replace("layer4_", "layer4.").replace("blocks_", "blocks."): v for key, v in model.state_dict().items()}
    found = [value for key, value in own.items() if key.endswith(last)]
    assert len(found) == 1 and torch.equal(found[0], stored[last])
    output = model(
        torch.randn(2, kwargs.get("in_chans", 3), kwargs.get("img_size", SIZE), kwargs.get("img_size", SIZE))
    )
    if "features_only" in kwargs:
        assert all(o.ndim == 4 for o in output)
    else:
        assert output.shape == (2, kwargs["num_classes"] or encoder.model.num_features)


def test_timm_computes_what_the_encoder_computes(exported):
    encoder, folder, _ = exported
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    encoder.eval()
    with torch.no_grad():
        assert torch.equal(model(images), encoder.model(images))
    config = timm.data.resolve_data_config({}, model=model)
    assert tuple(config["input_size"]) == (3, SIZE, SIZE) and tuple(config["std"]) == (0.2, 0.2, 0.3)


def test_a_number_of_classes_never_reaches_the_config(tmp_path):
    model = timm.create_model("resnet18", num_classes=0)
    arguments = {"name": "resnet18", "model_args": {"num_classes": 0}, "frozen": []}
    assert write_timm_folder(model, arguments, PREPROCESSING, tmp_path, "mit")["model_args"] == {"global_pool": "avg"}


def test_a_failed_export_raises_and_leaves_the_folder_as_it_was(tmp_path):
    encoder = encoder_of("resnet18")
    for name in ("config.json", "model.safetensors", "receipt.json"):
        (tmp_path / name).write_text("of an earlier export")
    # a layer that no file of timm's can describe: what is loaded back computes something else
    encoder.model.layer4.register_forward_hook(lambda module, inputs, output: output * 1.01)
    with pytest.raises(ExportError, match="features differ by") as caught:
        export_timm_folder(encoder.model, encoder.arguments(), PREPROCESSING, tmp_path)
    assert "\n" not in str(caught.value)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["of an earlier export"] * 3


def test_a_diverged_encoder_is_not_exported(tmp_path):
    encoder = encoder_of("resnet18")
    torch.nn.init.constant_(encoder.model.layer4[1].bn2.weight, float("nan"))
    with pytest.raises(ExportError, match="not finite"):
        export_timm_folder(encoder.model, encoder.arguments(), PREPROCESSING, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_folder_is_exported_from_its_checkpoint_and_loads_again(tmp_path):
    encoder = encoder_of("resnet18")
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    pixels = {key: PREPROCESSING[key] for key in ("mean", "std", "interpolation")}
    (tmp_path / "checkpoints").mkdir()
    meta = {"encoder": encoder.arguments(), "pixels": pixels}
    torch.save({"format": FORMAT, "state_dict": state, "meta": meta}, tmp_path / "checkpoints" / "step_000002.pth")
    (receipt,) = export(tmp_path, to=["timm"])
    assert receipt["folder"] == str(tmp_path / "export" / "timm")
    assert receipt["batchnorm"] == {"recalibrated": False, "why": "no images were given", "clean": False}
    model, preprocessing = load_encoder(receipt["folder"])
    assert hash_tensors(model.state_dict()) == hash_tensors(encoder.model.state_dict()) == receipt["tensors_sha256"]
    assert preprocessing == PREPROCESSING


def test_unknown_targets_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="choose from timm"):
        export("resnet18", to=["tim"], out_dir=tmp_path)
    with pytest.raises(ValueError, match="give out_dir"):
        export("resnet18")

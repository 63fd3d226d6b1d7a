"""A network of the user's own is handed over under its own keys, and loaded by its own class."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from a2mim.encoder import MaskedEncoder
from a2mim.export import ExportError, export, export_timm_folder
from a2mim.export.verify import verify
from a2mim.weights.loading import load_encoder

MODULE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, stride=4), nn.BatchNorm2d(width), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(width, width, 2, stride=2), nn.ReLU())
        self.classifier = nn.Linear(width, 3)

    def forward(self, images):
        return self.classifier(self.last(self.stem(images)).mean((2, 3)))
"""
PIXELS = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "img_size": [64, 64]}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(encoder, the folder that a run would leave)."""
    place = tmp_path_factory.mktemp("own")
    (place / "exported_net.py").write_text(MODULE)
    sys.path.insert(0, str(place))
    torch.manual_seed(0)
    encoder = MaskedEncoder("exported_net.Net", img_size=64, model_args={"width": 12})
    folder = place / "encoder"
    receipt = export_timm_folder(
        encoder.model, encoder.arguments(), PIXELS, folder, batches=[torch.randn(8, 3, 64, 64)]
    )
    assert receipt["target"] == "network" and receipt["mode"] == "loaded" and receipt["largest_difference"] < 1e-6
    yield encoder, folder
    sys.path.remove(str(place))


def test_the_file_holds_the_network_s_own_keys(exported):
    encoder, folder = exported
    tensors = load_file(folder / "model.safetensors")
    plain = sys.modules["exported_net"].Net(width=12)
    plain.load_state_dict(tensors, strict=True)
    assert all(torch.equal(tensors[key], value) for key, value in encoder.model.state_dict().items())


def test_the_folder_is_an_encoder_for_every_command(exported):
    encoder, folder = exported
    model, preprocessing = load_encoder(f"exported_net.Net:{folder}")
    assert preprocessing["img_size"] == [64, 64] and preprocessing["mean"] == [0.5] * 3
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), encoder.eval().model(images))
    assert model(images).shape == (2, 12)


def test_targets_of_timm_s_architectures_say_so(exported, tmp_path):
    with pytest.raises(ValueError, match="cannot be exported to timm: timm does not build it, choose network"):
        export(f"exported_net.Net:{exported[1]}", ["timm"], tmp_path)
    with pytest.raises(ValueError, match="cannot be exported to network: it is timm's, choose timm"):
        export("resnet10t", ["network"], tmp_path)


def test_one_renamed_key_is_found(exported):
    _, folder = exported
    tensors = load_file(folder / "model.safetensors")
    renamed = {key.replace("last.0.weight", "last.0.wieght"): value for key, value in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    receipt = json.loads((folder / "receipt.json").read_text())
    receipt["sha256"].pop("model.safetensors")  # so that not the file's hash but the load has to find it
    (folder / "receipt.json").write_text(json.dumps(receipt))
    with pytest.raises(ExportError, match=r"last.0.we?ie?ght"):
        verify(folder)

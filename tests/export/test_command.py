"""The export command: no masked statistics without a word, and mistakes in one sentence."""

import pytest
import torch

from a2mim.checkpoints import FORMAT
from a2mim.encoder import MaskedEncoder
from a2mim.export import ExportError
from a2mim.export.command import export_calibrated
from a2mim.weights.loading import read_source

SIZE = 32


def write_checkpoint(path, name):
    encoder = MaskedEncoder(name, img_size=SIZE)
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    pixels = {"mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bilinear"}
    torch.save(
        {"format": FORMAT, "state_dict": state, "meta": {"encoder": encoder.arguments(), "pixels": pixels}}, path
    )
    return path


def test_a_checkpoint_with_batchnorm_needs_images_or_an_explicit_no(tmp_path):
    path = write_checkpoint(tmp_path / "step_000001.pth", "resnet18")
    with pytest.raises(ValueError, match=r"those of masked images, .* --data") as caught:
        export_calibrated(path, ["timm"], tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    (receipt,) = export_calibrated(path, ["timm"], tmp_path / "out", calibrate=False)
    assert receipt["batchnorm"] == {"recalibrated": False, "why": "no images were given", "clean": False}
    assert not read_source(receipt["folder"]).calibrated
    with pytest.raises(ValueError, match="those of masked images"):  # nor does it get clean by being exported twice
        export_calibrated(receipt["folder"], ["timm"], tmp_path / "again")


def test_calibrated_statistics_are_handed_on_without_images(tmp_path):
    path = write_checkpoint(tmp_path / "step_000001.pth", "resnet18")
    (first,) = export_calibrated(path, ["timm"], tmp_path / "first", data="photos")
    (second,) = export_calibrated(first["folder"], ["timm"], tmp_path / "second")
    assert first["batchnorm"] == {"recalibrated": True, "images": 1024}
    assert second["batchnorm"] == {"recalibrated": False, "why": "no images were given", "clean": True}
    assert second["tensors_sha256"] == first["tensors_sha256"]


def test_a_checkpoint_without_batchnorm_needs_no_images(tmp_path):
    path = write_checkpoint(tmp_path / "step_000001.pth", "vit_tiny_patch16_224")
    (receipt,) = export_calibrated(path, ["timm"], tmp_path / "out")
    assert receipt["batchnorm"] == {"recalibrated": False, "why": "the model has no BatchNorm"}


def test_an_unknown_target_is_one_sentence_with_those_that_there_are(tmp_path):
    with pytest.raises(
        ValueError, match=r"export to \['coreml'\] was asked for: choose from timm, transformers, .*, or all\.$"
    ):
        export_calibrated("resnet18", ["coreml"], tmp_path)


def test_a_failed_proof_is_an_error_that_the_command_line_prints_as_a_sentence():
    assert issubclass(ExportError, ValueError)

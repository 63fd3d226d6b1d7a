"""Five channels of 16 bits, from .npy files to an encoder that is judged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import a2mim
from a2mim.cli import build_parser, main
from a2mim.commands.arguments import reading_of
from a2mim.data import EvalLoader, open_dataset
from a2mim.data.reading import Reading
from a2mim.engine.assembly import build_mim
from a2mim.engine.config import load_config
from a2mim.evaluation import extract_features

RECIPES = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """train/ and test/, two classes that differ in the fifth channel alone, 12 bits of 16."""
    root = tmp_path_factory.mktemp("bands")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for i in range(count):
            values = rng.integers(0, 2048, (40, 48, 5)).astype(np.uint16)
            values[:, :, 4] += np.uint16(2000 * (i % 2))
            place = root / split / "ab"[i % 2] / f"{i:02d}.npy"
            place.parent.mkdir(parents=True, exist_ok=True)
            np.save(place, values)
    return root


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("row", ["fastmim_xcit_small", "fastmim_resnet50"])
def test_a_learned_fill_has_the_channels_of_the_data(row, channels):
    pixels = {"data.in_chans": channels, "data.mean": (0.5,) * channels, "data.std": (0.5,) * channels}
    network = {"model.encoder.name": "test_resnet" if "resnet" in row else "test_vit"}
    model = build_mim(load_config(RECIPES / f"{row}.py", pixels | network, laptop=True))
    images = torch.randint(0, 256, (2, channels, *model.encoder.img_size), dtype=torch.uint8)
    sum(model(images).values()).backward()
    assert model.fill.colour.shape == (channels,) and model.fill.colour.grad.abs().max() > 0


def test_five_channels_of_sixteen_bits_pre_train_and_are_judged(recipe, bands, tmp_path):
    folder = tmp_path / "run"
    summary = a2mim.pretrain(
        recipe,
        bands,
        folder,
        device="cpu",
        num_workers=1,
        **{
            "data.in_chans": 5,
            "data.mean": (0.015,) * 5,
            "data.std": (0.009,) * 5,
            "schedule.epochs": 1,
            "schedule.warmup_epochs": 0,
        },
    )
    assert summary["steps"] == 2 and summary["status"] == "finished"
    losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines() if "loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all() and max(losses) < 20  # normalised, hence of order 1
    assert len(list((folder / "reconstructions").glob("*.png"))) == 2
    judged = summary["judged"]
    assert judged["after"]["linear"]["top1"] >= 50


def test_evaluation_sees_the_same_sixteen_bits(bands):
    """Features of an encoder that averages are the means of the files."""
    dataset = open_dataset(bands, "test", in_chans=5)
    assert dataset.pixel_format.bits == 16
    loader = EvalLoader(dataset, 40, resize=None, interpolation="bilinear", batch_size=3)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.register_parameter("unused", torch.nn.Parameter(torch.zeros(())))  # tells where the model lives
    model.forward_features = model.forward
    model.forward_head = lambda x, pre_logits: x
    features, labels = extract_features(model, loader, mean=(0,) * 5, std=(1,) * 5)
    for i in range(len(dataset)):
        expected = np.load(dataset.name(i))[:, 4:44].mean((0, 1)) / 65535
        assert np.allclose(features[i], expected, rtol=1e-5)
    assert labels.tolist() == dataset.labels.tolist()


def test_an_encoder_of_a_run_is_judged_on_images_read_as_the_run_read_them(recipe, tmp_path, capsys):
    """Floats, which nothing can be made of without their range; told anew where the encoder has been moved."""
    rng, data, folder = np.random.default_rng(0), tmp_path / "floats", tmp_path / "run"
    for i in range(24):
        place = data / ("train" if i < 16 else "test") / "ab"[i % 2] / f"{i:02d}.npy"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, rng.uniform(-1, 1, (40, 40, 3)).astype(np.float32))
    settings = {"data.value_range": (-1, 1), "data.exif": True, "schedule.epochs": 1, "schedule.warmup_epochs": 0}
    a2mim.pretrain(recipe, data / "train", folder, device="cpu", num_workers=0, export=["timm"], **settings)
    sets = ["--data", str(data / "train"), "--test-data", str(data / "test")]
    assert main(["knn", str(folder), *sets, "--device", "cpu", "--k", "3"]) == 0
    assert "as the run read its own: by their EXIF orientation, values from -1 to 1" in capsys.readouterr().err

    def read(source, *more):
        return reading_of(build_parser().parse_args(["knn", str(source), *sets, *more]))

    assert read(folder) == read(folder / "encoder") == read(folder / "checkpoints" / "step_00000002.pth")
    other = read(folder, "--no-exif", "--value-range", "0", "2")
    assert (other.exif, other.value_range) == (False, (0.0, 2.0))
    shutil.copytree(folder / "encoder", tmp_path / "moved" / "to" / "encoder")
    assert read(tmp_path / "moved" / "to" / "encoder") == read("resnet18") == Reading()


@pytest.mark.parametrize("bands", [[0, 1, 4], [4]])
def test_a_band_that_the_images_lack_is_refused_with_those_they_have(bands):
    changes = {"log.bands": bands, "data.in_chans": 4, "data.mean": [0.5] * 4, "data.std": [0.2] * 4}
    with pytest.raises(ValueError, match=r"log.bands=\[.*4\]: the images have the channels 0 to 3"):
        load_config(str(RECIPES / "a2mim_xcit.py"), changes)
    assert load_config(str(RECIPES / "a2mim_xcit.py"), changes | {"log.bands": [3, 2, 0]}).log.bands == (3, 2, 0)


@pytest.mark.parametrize("bands", [[0, 1], [], "rgb", [0.5]])
def test_bands_are_one_or_three_channel_numbers(bands):
    with pytest.raises(ValueError, match=r"log.bands=.* must be None or a list of one or three channel numbers"):
        load_config(str(RECIPES / "a2mim_xcit.py"), {"log.bands": bands})

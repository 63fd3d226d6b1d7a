"""Five channels of 16 bits, from .npy files to an encoder that is judged."""

import json

import numpy as np
import pytest
import torch

import a2mim
from a2mim.data import EvalLoader, open_dataset
from a2mim.evaluation import extract_features


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
    assert dataset.form.bits == 16
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

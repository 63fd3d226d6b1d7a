"""What training images decide before the first step of a fine-tuning: the classifier's first weights, and the rate."""

import json

import numpy as np
import pytest
import timm
import torch
from resumed_runs import assert_same_run, kill_after

from a2mim.data import EvalLoader, open_dataset, open_stream
from a2mim.engine.classifier import Classifier
from a2mim.engine.finetune_settings import ClassLoss, FinetuneSettings
from a2mim.engine.head_start import start_at_probe
from a2mim.engine.labelled_data import check_start
from a2mim.engine.optim import layer_groups, scale_classifier
from a2mim.engine.run import finetune
from a2mim.evaluation.features import extract_features
from a2mim.evaluation.logreg import fit_logreg
from a2mim.evaluation.results import read_results
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD

VIEW = {"img_size": 32, "resize": 37, "interpolation": "bilinear"}
RECIPE = {
    "data": {"img_size": 32},
    "global_batch_size": 8,
    "schedule": {"epochs": 2, "warmup_epochs": 0},
    "optimizer": {"base_lr": 0.05},
    "checkpoint": {"every_steps": 1, "keep": 100},
    "export": [],
    "log": {"report": False},
}


@pytest.fixture
def run(labelled, tmp_path):
    def start(name, source="test_vit", **arguments):
        arguments = {"data": labelled, "device": "cpu", "num_workers": 0} | arguments
        summary = finetune(RECIPE, source, work_dir=tmp_path / name, **arguments)
        return tmp_path / name, summary, read_results(tmp_path / name)[0]

    return start


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_classifier_starts_as_the_logistic_regression_on_frozen_features(labelled, name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=4, **({"img_size": 32} if "vit" in name else {}))
    model = Classifier(network, ClassLoss(), IMAGENET_MEAN, IMAGENET_STD)
    statistics = {key: value.clone() for key, value in network.state_dict().items() if "running_mean" in key}
    train = open_dataset(labelled, "train")
    found = start_at_probe(model, train, VIEW, torch.device("cpu"))
    assert found["images"] == 24 and network.training
    assert all(not torch.equal(network.state_dict()[key], value) for key, value in statistics.items())
    features, labels = extract_features(network, EvalLoader(train, **VIEW))
    wanted = fit_logreg(features, labels, (-5.0, 2.0), 15, held_out=0.2, tolerance=1e-9)
    network.eval()
    with torch.no_grad():
        logits = torch.cat([model(batch["images"], mode="predict") for batch in EvalLoader(train, **VIEW)])
    torch.testing.assert_close(logits[:, :3], wanted.logits(features), atol=1e-2, rtol=1e-2)
    assert (logits.argmax(dim=1) < 3).all()  # the fourth class has no training image
    assert found["c"] == wanted.c


def test_a_network_without_one_linear_classifier_cannot_start_at_a_probe(run):
    with pytest.raises(ValueError, match="no single linear classifier"):
        run("x", "deit_tiny_distilled_patch16_224", **{"classifier.start": "probe"})


def test_a_probe_at_rate_zero_is_the_result_and_a_random_start_is_not(run):
    still = {"optimizer.base_lr": 0.0, "optimizer.weight_decay": 0.0, "schedule.min_lr": 0.0}
    _, summary, probe = run("probe", **still, **{"classifier.start": "probe"})
    _, _, random = run("random", **still)
    assert probe["top1_last"] >= 75 > random["top1_last"]
    assert summary["start"]["probe"]["images"] == 24 and probe["start"] == summary["start"] and not random["start"]


def test_held_out_training_images_choose_the_rate(run, labelled):
    folder, _, result = run("tried", **{"optimizer.rates": [0.0, 0.05, 1e6], "schedule.epochs": 6})
    rate = result["start"]["rate"]
    assert rate["base_lr"] == 0.05 and rate["held_out"] == 6 and rate["steps"] == 6
    assert [float(key) for key in rate["tried"]] == [0.0, 0.05, 1e6]
    assert read_log_rate(folder) == pytest.approx(0.05 * 8 / 256)
    # the run itself is as if that rate had been given
    _, _, given = run("given", **{"optimizer.base_lr": 0.05, "schedule.epochs": 6})
    assert given["correct"] == result["correct"] and given["history"] == result["history"]


def read_log_rate(folder):
    """The rate of the first step of the log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return next(line["lr"] for line in lines if "lr" in line)


def test_a_resumed_run_keeps_what_was_decided(run, tmp_path):
    options = {"optimizer.rates": [0.01, 0.05], "classifier.start": "probe"}
    whole, summary, _ = run("whole", "test_resnet", **options)
    kill_after(whole, 4, tmp_path / "resumed")
    resumed, other, _ = run("resumed", None, resume=True)
    assert_same_run(whole, resumed)
    assert other["start"] == summary["start"] and other["result"] == summary["result"]


def test_the_classifier_has_a_rate_of_its_own():
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    groups = scale_classifier(model, layer_groups(model, 0.05, 0.5), 10.0)
    placed = [id(p) for group in groups for p in group["params"]]
    assert sorted(placed) == sorted(id(p) for p in model.parameters())
    heads = {id(p) for p in model.get_classifier().parameters()}
    for group in groups:
        inside = {id(p) in heads for p in group["params"]}
        assert len(inside) == 1
        assert group["lr_scale"] == 10.0 if inside == {True} else group["lr_scale"] <= 1.0


def test_a_pipeline_cannot_decide_before_the_first_step():
    stream = open_stream([(np.zeros((8, 8, 3), np.uint8), i % 2) for i in range(4)], 4)
    settings = FinetuneSettings.model_validate({"classifier": {"start": "probe"}, "optimizer": {"rates": [0.1]}})
    with pytest.raises(ValueError, match=r"start='probe' and optimizer.rates read the training images before"):
        check_start(settings, stream)
    check_start(FinetuneSettings(), stream)

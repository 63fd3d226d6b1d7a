"""Targets and predictions of features: how much they differ is logged, and predictions that became a constant stop."""

import json

import pytest
import torch

import a2mim
from a2mim import MIM, MaskedEncoder
from a2mim.engine.collapse import CollapseHook, Deviations, deviation
from a2mim.losses import MaskedCosine, MaskedSmoothL1
from a2mim.masking import BlockMask

PARTS = {"model.losses": [{"type": "MaskedSmoothL1"}], "model.decoder": "conv_neck"}


@pytest.fixture
def trained(recipe, images, tmp_path):
    def train(**overrides):
        settings = {"schedule.epochs": 1, "schedule.warmup_epochs": 0, "judge.every_epochs": None, "log.report": False}
        a2mim.pretrain(recipe, images, tmp_path / "run", device="cpu", num_workers=0, **settings | PARTS | overrides)
        lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
        return [line for line in lines if "loss" in line]

    return train


@pytest.mark.parametrize("scale_free", [False, True])
def test_the_deviation_is_that_of_a_slow_loop_over_hidden_cells(scale_free):
    features, hidden = torch.randn(3, 5, 4, 4) * 3 + 1, torch.rand(3, 1, 4, 4) < 0.5
    cells = [features[b, :, y, x] for b in range(3) for y in range(4) for x in range(4) if hidden[b, 0, y, x]]
    if scale_free:
        cells = [cell / cell.square().mean().sqrt() for cell in cells]
    expected = torch.stack(cells).var(0, correction=0).mean().sqrt()
    torch.testing.assert_close(deviation(features, hidden, scale_free), expected)
    constant = torch.ones(3, 5, 4, 4) * torch.arange(5).view(1, 5, 1, 1) + 1
    assert deviation(constant, hidden, scale_free) < 1e-6
    if scale_free:
        torch.testing.assert_close(deviation(1e-4 * features, hidden, True), expected)


def method(target, loss):
    torch.manual_seed(0)
    return MIM(MaskedEncoder("test_vit", img_size=64, mask_patch_size=16), BlockMask(16, 0.5), [loss], target=target)


def test_each_micro_batch_of_a_step_counts_and_answers_of_no_network_do_not():
    model, images = method("moving_average", MaskedSmoothL1()), torch.randn(2, 3, 64, 64)
    watch = Deviations(model)
    assert watch.values() == {}
    masks = BlockMask(16, 0.5)(2, 64, 64), BlockMask(16, 0.5)(2, 64, 64)
    for mask in masks:
        model(images, mask=mask)
        model.baselines(images, mask)
    found = watch.values()
    expected = []
    for mask in masks:
        with torch.no_grad():
            shown = model(images, mode="predict", mask=mask)
        expected.append([deviation(shown[key], shown["hidden"]) for key in ("target", "recon")])
    torch.testing.assert_close(torch.stack(list(found.values())), torch.tensor(expected).mean(0))
    assert not any(value.requires_grad for value in found.values())
    watch.clear()
    assert watch.values() == {}


def test_pixels_are_not_watched_and_directions_are_for_losses_of_directions():
    model = method("pixels", MaskedSmoothL1())
    watch = Deviations(model)
    model(torch.randn(2, 3, 64, 64))
    assert watch.values() == {}
    assert Deviations(method("random", MaskedCosine())).scale_free


@pytest.mark.parametrize("target", ["moving_average", "random"])
def test_a_run_with_a_target_of_features_logs_both_numbers_at_each_line(trained, target):
    lines = trained(**{"model.target": target})
    assert lines and all(line["target_std"] > 0.01 and line["prediction_std"] > 0 for line in lines)


def test_predictions_that_become_a_constant_stop_the_run(trained, monkeypatch):
    values = iter([0.5, 0.3])
    original = Deviations.values

    def falling(self):
        found = original(self)
        return found and found | {"prediction_std": torch.tensor(next(values, 0.001))}

    monkeypatch.setattr(Deviations, "values", falling)
    with pytest.raises(FloatingPointError, match=r"step 3.*differ by 0.001 .*collapsed to a constant"):
        trained(**{"model.target": "moving_average"})


def test_predictions_that_begin_as_a_constant_have_time():
    hook = CollapseHook()
    hook.latest = 600
    for step, value in ((1, 0.001), (2, 0.015), (3, 0.009), (600, 0.001)):  # of one image they go up and down
        hook.see(step, value)
    with pytest.raises(FloatingPointError):
        hook.see(601, 0.001)
    hook.latest = 1000
    hook.see(601, 0.03)
    with pytest.raises(FloatingPointError, match="step 602"):
        hook.see(602, 0.009)

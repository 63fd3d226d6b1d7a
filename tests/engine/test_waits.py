"""An ordinary step waits for nothing on the device, and one that is not finite changes nothing."""

import math
import traceback
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import a2mim
from a2mim.engine.averaging import AveragedTensors
from a2mim.engine.guard import Guard
from a2mim.engine.optim import StepWrapper
from a2mim.engine.runner import TrainLoop, TrainRunner
from a2mim.mim import MIM
from a2mim.wiring.hiding import Sparse

WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "lift_fresh")


class Waits(TorchDispatchMode):
    """Counts what a GPU would have to answer for, or be sent from pageable memory, by the line that asks for it."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITS or name.startswith("unique") or by_mask:
            ours = [line for line in traceback.extract_stack() if "/a2mim/" in line.filename]
            self.found[f"{name} at {ours[-1].filename}:{ours[-1].lineno}"] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """{step: what it waited for}, from the step itself and the hooks after it."""
    steps = {}
    step, hooks = TrainLoop.run_iter, TrainRunner.call_hook

    def run_iter(self, batch):
        with Waits() as counted:
            step(self, batch)
        steps[self.step] = counted.found

    def call_hook(self, name, **arguments):
        if name != "after_train_iter":
            return hooks(self, name, **arguments)
        with Waits() as counted:
            hooks(self, name, **arguments)
        steps[self.train_loop.step] += counted.found

    monkeypatch.setattr(TrainLoop, "run_iter", run_iter)
    monkeypatch.setattr(TrainRunner, "call_hook", call_hook)
    return steps


VIT = {"name": "vit_tiny_patch16_224", "model_args": {"depth": 2, "embed_dim": 64, "num_heads": 2}}
SPARSE = {"model.encoder": {"name": "resnet10t", "hide": "sparse"}, "model.masking": {"type": "BlockMask"}}
RECIPES = {
    "plain": {},
    "clipped, averaged, accumulated": {"clip_grad": 1.0, "ema": 0.01, "accumulate": 2},
    "bf16": {"amp": "bf16"},
    "fp16": {"amp": "fp16", "clip_grad": 1.0},
    "batchnorm": {"model.encoder": {"name": "resnet10t"}, "ema": 0.01},
    "xcit": {"model.encoder": {"name": "xcit_nano_12_p16_224", "visible_stats": True, "drop_path_rate": 0.1}},
    "dropped": {"model.encoder": VIT | {"hide": "drop"}, "model.masking": {"type": "MultiBlock"}},
    "sparse": SPARSE | {"model.decoder": {"type": "LightDecoder", "width": 32}},
    "scales": SPARSE
    | {
        "model.encoder": {"name": "resnet10t", "hide": "sparse", "maps": ["layer3", "layer4"]},
        "model.decoder": {"type": "EachScale", "decoder": {"type": "LightDecoder", "width": 32}},
        "model.target": {"type": "HOG", "cells": [8, 16]},
    },
    "blocks": {"model.masking": {"type": "BEiTBlocks", "min_cells": 2}, "model.target": "hog"},
    "grid": {"model.masking": {"type": "UniformGrid"}, "model.target": {"type": "NormalizedPatches"}},
    "inverse": {"model.masking": {"type": "InverseBlock"}, "model.target": "lbp"},
    "frozen teacher": {"model.target": {"type": "FrozenFeatures", "source": "test_vit2"}, "data.mean": [0.1] * 3},
    "random teacher": {"model.target": "random"},
    "teacher": {"model.target": {"type": "MovingAverage"}, "model.losses": [{"type": "PatchDiscrimination"}]},
}


@pytest.mark.parametrize("changes", RECIPES.values(), ids=list(RECIPES))
def test_an_ordinary_step_waits_for_nothing(run, waits, changes, monkeypatch):
    monkeypatch.setattr(Sparse, "_counts_are_equal", lambda self: False)  # it looks at masks on the CPU alone
    quiet = {"model.encoder": VIT, "model.losses": [{"type": "MaskedL1"}, {"type": "FourierLoss", "weight": 0.1}]}
    quiet |= {"data.img_size": 64, "checkpoint.every_steps": 100, "log.every_steps": 3, "clip_grad": None}
    quiet |= {"schedule.epochs": 2, "judge.every_epochs": None}
    if "model.target" in changes:
        quiet["model.losses"] = [{"type": "MaskedL2"}]
    run("quiet", **quiet | changes)
    assert len(waits) == 6
    assert not waits[4] and not waits[5], (waits[4], waits[5])  # step 3 is logged, step 6 is saved


def test_fine_tuning_waits_for_nothing(waits, labelled, tmp_path):
    settings = {"schedule.epochs": 3, "schedule.warmup_epochs": 0, "global_batch_size": 8, "log.every_steps": 4}
    settings |= {"data.img_size": 64, "data.test_size": 64, "evaluate.every_epochs": 3, "export": []}
    a2mim.finetune(
        "finetune/rsb_a3",
        "test_resnet",
        labelled / "train",
        tmp_path / "run",
        test_data=labelled / "test",
        device="cpu",
        num_workers=0,
        **settings | {"optimizer.type": "adamw"},
    )
    assert not waits[6] and not waits[7], (waits[6], waits[7])


def broken_from(step, monkeypatch, how=math.nan):
    """Makes the loss of that step `how`; later ones are as they are."""
    compare, calls = MIM.compare, []

    def broken(self, recon, target, hidden):
        losses = compare(self, recon, target, hidden)
        calls.append(recon.requires_grad)
        return {k: v * how if sum(calls) == step and calls[-1] else v for k, v in losses.items()}

    monkeypatch.setattr(MIM, "compare", broken)


@pytest.mark.parametrize("how", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_no_weight_no_average_and_no_statistic(run, monkeypatch, how):
    states = {}
    hooks = TrainRunner.call_hook

    def call_hook(self, name, **arguments):
        hooks(self, name, **arguments)
        if name == "after_train_iter":
            parts = (self.inner_model, self.averaged)
            states[self.iter] = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]

    monkeypatch.setattr(TrainRunner, "call_hook", call_hook)
    broken_from(4, monkeypatch, how)
    changes = {"model.encoder": {"name": "resnet10t"}, "ema": 0.1, "log.every_steps": 100, "checkpoint.every_steps": 3}
    with pytest.raises(FloatingPointError, match=rf"step 4: the loss is {how}; stopped before the weights changed"):
        run("broken", **changes, **{"schedule.epochs": 3, "judge.every_epochs": None})
    assert list(states) == [1, 2, 3, 4]  # it is known while step 5 runs
    for before, after in zip(states[3], states[4], strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_step_that_is_not_finite_is_neither_logged_nor_saved(run, monkeypatch):
    broken_from(4, monkeypatch)
    with pytest.raises(FloatingPointError, match=r"step 4: the loss is nan; .*last good checkpoint is .*step_00000003"):
        run("broken")


def adam(accumulate=1):
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    return weight, StepWrapper(torch.optim.AdamW([weight], lr=0.1, fused=True), None, "cpu", accumulate)


def test_all_steps_after_a_broken_one_are_skipped_too():
    weight, wrapper = adam(accumulate=2)
    for factor in (1.0, math.inf, 1.0, 1.0):
        wrapper.update_params(weight.sum() * factor)
    assert weight.item() == 1.0
    assert wrapper.problem_of(wrapper.numbers().tolist()) == "the gradient's norm is nan"


def test_the_guard_changes_no_bit_of_a_gradient():
    value = torch.rand(1000, requires_grad=True)
    losses = [value.square().sum(), Guard().see(value.square().sum())]
    assert torch.equal(*(torch.autograd.grad(loss, value)[0] for loss in losses))


def test_averages_stay_where_the_step_was_bad_and_move_as_usual_where_not():
    model = torch.nn.Linear(4, 4)
    ours, plain = (AveragedTensors(model, momentum=0.1) for _ in range(2))
    for bad in (False, False, True):
        ours.bad = torch.tensor(bad)
        before = {key: value.clone() for key, value in ours.state_dict().items() if key != "steps"}
        with torch.no_grad():
            model.weight.add_(1)
        ours.update_parameters(model)
        plain.update_parameters(model)
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in before.items())
    assert not torch.equal(plain.module.weight, ours.module.weight)

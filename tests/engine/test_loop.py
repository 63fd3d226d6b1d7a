"""What reaches the model at each step, seen by a loss that takes notes."""

import json
import math
import shutil
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from two_processes import run_pair

import a2mim
from a2mim.checkpoints import list_checkpoints
from a2mim.data import open_dataset
from a2mim.engine.config import changed, load_config
from a2mim.engine.judging import Judge
from a2mim.engine.state import first_broken
from a2mim.registry import MODELS


@MODELS.register_module()
class Notes(torch.nn.Module):
    """Writes down every call; its value depends on the mask, its gradient reaches the reconstruction."""

    name = "notes"
    calls: ClassVar[list] = []

    def forward(self, recon, target, hidden):
        answered = "baseline" if recon.grad_fn is None else "network"
        if self.training or answered == "network":  # the rest are health checks, which look and train nothing
            Notes.calls.append((answered, target.clone(), hidden.clone(), self.training))
        return recon.square().mean() + hidden[:, :, ::16, ::16].flatten(1).float().mean(0).cumsum(0).sum()


@pytest.fixture
def noted(run):
    """noted(**overrides) -> (the folder, the summary, [(who answered, target, hidden, training), …])."""

    def start(name="run", **overrides):
        Notes.calls = []
        folder, summary = run(name, **({"model.losses": [{"type": "Notes"}]} | overrides))
        return folder, summary, list(Notes.calls)

    return start


def of(calls, who):
    return [call[1:] for call in calls if call[0] == who]


def test_every_step_and_every_seed_has_masks_of_its_own(noted):
    _, _, calls = noted("a")
    masks = [hidden for _, hidden, _ in of(calls, "network")]
    assert len(masks) == 9
    assert len({mask.numpy().tobytes() for mask in masks}) == 9
    _, _, other = noted("b", seed=1)
    assert not torch.equal(masks[0], of(other, "network")[0][1])


def test_the_baseline_is_of_the_step_s_own_images_and_masks(noted):
    _, _, calls = noted()
    answered = of(calls, "baseline")
    for answers in (answered[::2], answered[1::2]):  # the mean and the median colour
        for (target, hidden, _), (same_target, same_hidden, _) in zip(of(calls, "network"), answers, strict=True):
            assert torch.equal(hidden, same_hidden)
            assert torch.equal(target, same_target)


def test_accumulation_cuts_the_batch_and_logs_the_mean_of_its_pieces(noted):
    _, _, whole = noted("whole")
    folder, _, pieces = noted("pieces", accumulate=4)
    parts = of(pieces, "network")
    assert [len(target) for target, _, _ in parts] == [2] * 36
    first = torch.cat([target for target, _, _ in parts[:4]])
    assert torch.equal(first, of(whole, "network")[0][0])
    line = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    expected = (
        sum(hidden[:, :, ::16, ::16].flatten(1).float().mean(0).cumsum(0).sum() for _, hidden, _ in parts[:4]) / 4
    )
    assert 0 < line["loss"] - expected.item() < 10  # the rest is the squared reconstruction


def test_the_model_trains_also_after_a_picture(noted):
    _, _, calls = noted(**{"log.pictures": 9})
    assert all(training for *_, training in calls)


def test_the_rate_of_each_step_is_the_schedule_s(noted):
    folder, _, _ = noted()
    lr = 0.05 * 8 / 256
    for step, text in enumerate((folder / "log.jsonl").read_text().splitlines()):
        half = (1 + math.cos(math.pi * (step - 3) / 6)) / 2
        expected = lr * step / 3 if step < 3 else 1e-5 + (lr - 1e-5) * half
        assert json.loads(text)["lr"] == pytest.approx(expected)


def test_the_gradient_is_clipped_by_what_the_recipe_says(run):
    folder, _ = run("still", clip_grad=1e-12, **{"optimizer.type": "sgd", "optimizer.weight_decay": 0.0})
    states = [torch.load(p, weights_only=True)["state_dict"] for p in list_checkpoints(folder / "checkpoints")]
    name = "encoder.model.blocks.3.mlp.fc1.weight"
    assert (states[0][name] - states[-1][name]).abs().max() < 1e-9


def test_checkpoints_come_every_so_many_epochs(run):
    folder, _ = run("epochs", **{"checkpoint.every_steps": None, "checkpoint.every_epochs": 2})
    assert [p.stem for p in list_checkpoints(folder / "checkpoints")] == ["step_00000006", "step_00000009"]


def test_a_checkpoint_comes_also_when_the_last_is_old(run, monkeypatch):
    clock = iter(range(0, 10_000, 40))  # each look at it is 40 s later
    monkeypatch.setattr("a2mim.engine.hooks.time", SimpleNamespace(monotonic=lambda: next(clock)))
    every = {"checkpoint.every_steps": None, "checkpoint.every_epochs": 3, "checkpoint.every_minutes": 1}
    folder, _ = run("minutes", **every)
    saved = [int(path.stem.removeprefix("step_")) for path in list_checkpoints(folder / "checkpoints")]
    assert saved == [2, 4, 6, 8, 9]  # 80 s after the last


def test_the_summary_names_the_rival_and_the_last_lines_say_when_it_is_not_beaten(run, capsys):
    _, summary = run("poor", **{"optimizer.base_lr": 0.0, "schedule.min_lr": 0.0})
    loss = summary["loss"]
    assert loss["baseline"] == min(loss["mean_colour"], loss["median_colour"]) < loss["last"]
    assert loss["baseline_name"] in ("each image's mean colour", "each image's median colour")
    assert f"the last loss is not below that of always answering {loss['baseline_name']}" in capsys.readouterr().out


def test_weights_that_are_not_finite_are_named():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert first_broken(model) is None
    model[1].bias.data[1] = float("nan")
    assert first_broken(model) == "1.bias"


def test_the_averaged_weights_are_what_is_exported(run):
    from safetensors.torch import load_file

    folder, _ = run("ema", ema=0.5, export=["timm"])
    exported = load_file(folder / "encoder" / "model.safetensors")
    checkpoint = torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)
    name = "blocks.3.mlp.fc1.weight"
    averaged = checkpoint["state_dict"][f"encoder.model.{name}"]
    trained = checkpoint["ema_state_dict"][f"module.encoder.model.{name}"]
    assert torch.equal(exported[name], averaged)
    assert not torch.equal(exported[name], trained)


@pytest.fixture(scope="module")
def photos():
    return open_dataset("photos", "train"), open_dataset("photos", "test")


def small_judge(settings, photos):
    few = {"judge.train_images": 64, "judge.test_images": 32, "judge.k": 5}
    return Judge(changed(settings, few), *photos, torch.device("cpu"))


def test_the_judge_calibrates_batchnorm_so_that_stale_statistics_change_nothing(recipe, photos):
    settings = load_config(recipe)
    judge = small_judge(settings, photos)
    encoder = MODELS.build({"type": "MaskedEncoder", "name": "resnet18", "img_size": 32})
    fresh = judge(encoder, "before")
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.fill_(3.0)
    stale = judge(encoder, "before")
    assert torch.equal(fresh["knn"]["correct"], stale["knn"]["correct"])


def test_before_is_the_untrained_network_and_after_the_trained_one(run, recipe):
    quick = {"judge.train_images": 64, "judge.test_images": 64, "global_batch_size": 512, "schedule.epochs": 2}
    quick |= {"data": "photos", "laptop": False, "schedule.min_lr": 0.0}  # else even base_lr=0 ends at min_lr
    still = run("still", **quick, **{"optimizer.base_lr": 0.0})[1]["judged"]
    moved = run("moved", **quick, **{"optimizer.base_lr": 0.01})[1]["judged"]
    assert still["before"]["linear"] == still["after"]["linear"] == moved["before"]["linear"]
    assert moved["after"]["linear"] != moved["before"]["linear"]


PAIR = """
import os, sys, torch
import a2mim
from a2mim.engine.runner import TrainLoop
from a2mim.mim import MIM

plain, forward = TrainLoop.run, MIM.forward

def small(self, images, *arguments, **named):
    if self.training and len(images) > 2 and os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return forward(self, images, *arguments, **named)

MIM.forward = small

def run(self):
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    part = next(self.runner.run.task.micro_batches(self.runner.context, {"images": images}, 0, 0))
    mask = self.runner.inner_model.masking(4, 32, 32, generator=part["generator"]).long()
    masks = [torch.empty_like(mask) for _ in range(2)]
    torch.distributed.all_gather(masks, mask)
    assert not torch.equal(*masks), "both processes draw the same masks"
    model = plain(self)
    for name, parameter in model.named_parameters():
        both = [torch.empty_like(parameter) for _ in range(2)]
        torch.distributed.all_gather(both, parameter.detach())
        assert torch.equal(*both), name
    return model

TrainLoop.run = run
config, data, folder, *more = sys.argv[1:]
a2mim.pretrain(config, data, folder, device="cpu", num_workers=0, resume="resume" in more, accumulate="auto")
"""


def start_pair(tmp_path, recipe, images, folder, *more):
    script = tmp_path / "pair.py"
    script.write_text(PAIR)
    run_pair(script, recipe, images, folder, *more)
    return torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)


@pytest.mark.slow
def test_two_processes_keep_equal_weights_draw_their_own_masks_and_resume_exactly(recipe, images, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(images, damaged)
    for number in range(2):
        (damaged / f"none{number}.png").write_bytes(b"no image")

    def unreadable():
        return json.loads((tmp_path / "pair" / "summary.json").read_text())["data"]["unreadable"]

    whole = start_pair(tmp_path, recipe, damaged, tmp_path / "pair")
    kept = json.loads((tmp_path / "pair" / "settings.json").read_text())
    assert kept["accumulate"] == 2  # the second process has memory for two images at a time, the first for four
    assert 0 < whole["loader"]["faults"]["not an image"] == unreadable()["not an image"]  # over both
    for path in list_checkpoints(tmp_path / "pair" / "checkpoints")[4:]:
        path.unlink()
    resumed = start_pair(tmp_path, recipe, damaged, tmp_path / "pair", "resume")
    assert resumed["loader"]["faults"] == whole["loader"]["faults"] == unreadable()
    for key, value in whole["state_dict"].items():
        if "running_" not in key:  # the other process's statistics are not saved, and no weight depends on them
            assert torch.equal(value, resumed["state_dict"][key]), key


def test_a_run_in_a_thread_is_trained_without_signals(recipe, images, tmp_path):
    """As notebooks' background cells and web servers start it."""
    from concurrent.futures import ThreadPoolExecutor

    settings = {"schedule.epochs": 1, "schedule.warmup_epochs": 0}
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(a2mim.pretrain, recipe, images, tmp_path / "run", device="cpu", num_workers=0, **settings)
        assert run.result()["status"] == "finished"

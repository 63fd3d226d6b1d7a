"""Interrupted + resumed = uninterrupted, bit for bit."""

import json
import shutil

import pytest
import torch
from resumed_runs import assert_same_run, kill_after, log_of, weights_of
from small_recipe import ENCODER

import a2mim
from a2mim.checkpoints import list_checkpoints
from a2mim.engine.hooks import keep_lines_until


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"ema": 0.1, "accumulate": 2},
        {"amp": "bf16", "channels_last": True},
        {"model.encoder.site": ["blocks.1", "blocks.2"], "model.encoder.maps": ["blocks.1", "blocks.3"]},
    ],
    ids=["plain", "ema+accumulate", "bf16", "two sites, two maps"],
)
@pytest.mark.filterwarnings("ignore:amp='bf16' on this CPU")
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(run, tmp_path, overrides):
    whole, _ = run("whole", **overrides)
    kill_after(whole, 4, tmp_path / "resumed")  # in the middle of the second epoch
    resumed, summary = run("resumed", resume=True, **overrides)
    assert summary["steps"] == 9
    assert_same_run(whole, resumed)


NETWORK = """
from torch import nn


class TwoStages(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, stride=4), nn.BatchNorm2d(width), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, images):
        return self.classifier(self.stage(self.stem(images)).mean((2, 3)))
"""


def test_a_network_of_ones_own_is_resumed_bit_for_bit_from_its_folder(run, recipe, tmp_path, monkeypatch):
    (tmp_path / "net_to_resume.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    own = 'name="net_to_resume.TwoStages", model_args=dict(width=4), site="stem", token="scaled"'
    recipe.write_text(recipe.read_text().replace(ENCODER, own))
    whole, _ = run("whole", ema=0.1)
    kill_after(whole, 4, tmp_path / "resumed")
    a2mim.pretrain(recipe, work_dir=tmp_path / "resumed", resume=True, device="cpu", num_workers=0)
    assert_same_run(whole, tmp_path / "resumed")
    assert "encoder.model.stem.0.weight" in weights_of(whole)["state_dict"]


def test_another_number_of_workers_resumes_the_same_run(run, tmp_path):
    whole, _ = run("whole")
    kill_after(whole, 5, tmp_path / "resumed")
    resumed, _ = run("resumed", resume=True, num_workers=2)
    assert_same_run(whole, resumed)


def test_a_run_killed_before_its_first_checkpoint_resumes_from_the_start(run, tmp_path):
    whole, _ = run("whole", **{"checkpoint.every_steps": 5})
    kill_after(whole, 0, tmp_path / "resumed")
    log = tmp_path / "resumed" / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))
    resumed, _ = run("resumed", resume=True)
    assert_same_run(whole, resumed)


def test_a_run_folder_s_config_is_never_executed(run, tmp_path):
    whole, _ = run("whole")
    kill_after(whole, 4, tmp_path / "resumed")
    trap = f"open({str(tmp_path / 'executed')!r}, 'w')\n"
    (tmp_path / "resumed" / "config.py").write_text(trap)
    resumed, _ = run("resumed", resume=True)
    assert_same_run(whole, resumed)
    kill_after(whole, 4, tmp_path / "old")
    (tmp_path / "old" / "settings.json").unlink()  # as an older version left it
    old, _ = run("old", resume=True)
    assert_same_run(whole, old)
    kill_after(whole, 4, tmp_path / "strange")
    (tmp_path / "strange" / "settings.json").unlink()
    (tmp_path / "strange" / "config.py").write_text(trap)
    with pytest.warns(UserWarning, match="never executed"):
        run("strange", resume=True)
    assert not (tmp_path / "executed").exists()


def test_settings_that_somebody_changed_in_the_folder_are_said_and_recorded(run, tmp_path, capsys):
    whole, _ = run("whole")
    kill_after(whole, 4, tmp_path / "resumed")
    path = tmp_path / "resumed" / "settings.json"
    path.write_text(path.read_text().replace('"clip_grad": 5.0', '"clip_grad": 4.0'))
    resumed, summary = run("resumed", resume=True, **{"optimizer.weight_decay": 0.5})
    sentences = ["clip_grad: 5.0 -> 4.0", "optimizer.weight_decay: 0.05 -> 0.5"]
    assert f"  changed  {'; '.join(sentences)}" in capsys.readouterr().out
    change = {"step": 4, "changed": sentences}
    assert summary["changes"] == [change] and json.loads((resumed / "summary.json").read_text())["changes"] == [change]
    assert (resumed / "config.py").read_text().startswith(f"# changed at step 4: {'; '.join(sentences)}\n")
    logged = [json.loads(text) for text in (resumed / "log.jsonl").read_text().splitlines()]
    assert logged[4] == change and len(logged) == 11
    assert logged[5]["event"] == "resume" and "clip_grad: 5.0 -> 4.0" in logged[5]["says"]


def test_resuming_with_other_data_or_another_batch_is_refused_by_name(run, tmp_path, images):
    run("whole")
    with pytest.raises(ValueError, match="global_batch_size was 8"):
        run("whole", resume=True, global_batch_size=4)
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    (fewer / "03.png").unlink()
    with pytest.raises(ValueError, match="data was"):
        run("whole", resume=True, data=fewer)


def test_a_longer_schedule_can_be_resumed(run):
    folder, _ = run("whole")
    _, summary = run("whole", resume=True, **{"schedule.epochs": 4})
    assert summary["steps"] == 12
    assert [line["step"] for line in log_of(folder)] == list(range(1, 13))


def test_changed_settings_are_in_force_after_resuming_and_recorded(run, tmp_path, capsys):
    whole, _ = run("whole")
    kill_after(whole, 4, tmp_path / "resumed")
    resumed, _ = run("resumed", resume=True, **{"optimizer.weight_decay": 0.5})
    assert "optimizer.weight_decay: 0.05 -> 0.5" in capsys.readouterr().out
    assert "'weight_decay': 0.5" in (resumed / "config.py").read_text()
    groups = weights_of(resumed)["optimizer"]["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.0]


def test_a_refused_resume_leaves_the_folder_as_it_was(run):
    folder, _ = run("whole")
    before = (folder / "config.py").read_text()
    with pytest.raises(ValueError, match="seed was 0"):
        run("whole", resume=True, seed=1)
    assert (folder / "config.py").read_text() == before


def test_resuming_needs_no_more_than_the_folder(run, recipe, images, tmp_path):
    whole, _ = run("whole", **{"schedule.epochs": 4})
    kill_after(whole, 4, tmp_path / "resumed")
    a2mim.pretrain(recipe, work_dir=tmp_path / "resumed", resume=True, device="cpu", num_workers=0)
    assert_same_run(whole, tmp_path / "resumed")


def test_only_the_newest_k_checkpoints_are_kept(run):
    folder, _ = run("whole", **{"checkpoint.keep": 2})
    assert [p.name for p in list_checkpoints(folder / "checkpoints")] == ["step_00000008.pth", "step_00000009.pth"]


def test_checkpoints_hold_plain_values_and_tensors_only(run):
    folder, _ = run("whole", ema=0.1)
    path = list_checkpoints(folder / "checkpoints")[-1]
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    assert torch.load(path, weights_only=True)["meta"]["encoder"]["name"] == "xcit_nano_12_p16_224"


def test_the_log_is_cut_back_to_the_step_that_is_resumed_and_half_a_line_goes(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    keep_lines_until(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_other_data_begin_the_next_epoch_when_that_is_asked_for(run, tmp_path, images, capsys):
    """Three steps an epoch, then two: killed after step 4, so epochs 0 and 1 (cut short) are 4 steps, epoch 2 is 2."""
    whole, _ = run("whole")
    kill_after(whole, 4, tmp_path / "resumed")
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    for number in range(5):
        (fewer / f"{number:02d}.png").unlink()
    epochs = {"checkpoint.every_steps": None, "checkpoint.every_epochs": 1, "schedule.epochs": 4}
    shutil.copytree(tmp_path / "resumed", tmp_path / "longer")
    longer, _ = run("longer", resume=True, data=fewer, next_epoch=True, **epochs)
    ends = [int(path.stem.removeprefix("step_")) for path in list_checkpoints(longer / "checkpoints")]
    assert ends == [1, 2, 3, 4, 6, 8]  # those of each step until it was killed, then those of epochs 2 and 3
    capsys.readouterr()
    resumed, summary = run("resumed", resume=True, data=fewer, next_epoch=True)
    assert "epoch 1 ends after 1 batches, epoch 2 begins with the new value" in capsys.readouterr().out
    assert summary["steps"] == 6 and summary["data"]["images"] == 19 and summary["data"]["left_out_each_epoch"] == 3
    assert [line["epoch"] for line in log_of(resumed)] == [0.333, 0.667, 1.0, 1.333, 2.5, 3.0]
    shutil.copytree(resumed, tmp_path / "again")
    (tmp_path / "again" / "checkpoints" / "step_00000006.pth").unlink()
    again, _ = run("again", resume=True, data=fewer)  # nothing changed any more: exact, and without the flag
    assert_same_run(resumed, again)


def test_beginning_the_next_epoch_without_resuming_is_refused(run):
    with pytest.raises(ValueError, match="--next-epoch says how to go on"):
        run("whole", next_epoch=True)


def test_a_run_that_gives_up_its_averages_goes_on_from_the_weights_that_were_trained(run, tmp_path):
    without, _ = run("without", **{"schedule.epochs": 1, "schedule.warmup_epochs": 0})
    average, _ = run("average", **{"schedule.epochs": 1, "schedule.warmup_epochs": 0}, ema=0.1)
    kill_after(average, 2, tmp_path / "again")  # after the first step both are the same
    run("again", resume=True, ema=None)
    first, second = weights_of(without), weights_of(tmp_path / "again")
    assert "ema_state_dict" not in second
    assert all(torch.equal(value, second["state_dict"][key]) for key, value in first["state_dict"].items())

"""Interrupted + resumed = uninterrupted, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from small_recipe import ENCODER, RECIPE

import a2mim
from a2mim.checkpoints import list_checkpoints, read_newest, write_checkpoint
from a2mim.engine.hooks import keep_lines_until


def log_of(folder):
    """Everything but speeds and memory, and what resuming changed."""
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "changed" not in line and "event" not in line]
    return [
        {k: v for k, v in line.items() if k not in ("images_per_second", "data_share", "memory_gb")} for line in lines
    ]


def weights_of(folder):
    return torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)


def assert_same_run(a, b):
    assert log_of(a) == log_of(b)
    first, second = weights_of(a), weights_of(b)
    assert first["meta"]["step"] == second["meta"]["step"]
    assert first["loader"] == second["loader"]
    for part in ("state_dict", "ema_state_dict"):
        for key, value in first.get(part, {}).items():
            assert torch.equal(value, second[part][key]), key
    for state in zip(*(c["optimizer"]["optimizer"]["state"].values() for c in (first, second)), strict=True):
        assert all(torch.equal(state[0][k], state[1][k]) for k in state[0])


def kill_after(folder, step, copy):
    """What a run killed in step + 1 leaves: checkpoints up to `step`, a log that is ahead of them, half a file."""
    shutil.copytree(folder, copy)
    for path in list_checkpoints(copy / "checkpoints")[step:]:
        path.unlink()
    (copy / "checkpoints" / f"step_{step + 1:08d}.partial").write_bytes(b"half")
    with (copy / "log.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')


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


def test_a_corrupt_newest_checkpoint_falls_back_to_the_one_before_with_a_warning(run, tmp_path):
    whole, _ = run("whole")
    kill_after(whole, 5, tmp_path / "resumed")
    newest = list_checkpoints(tmp_path / "resumed" / "checkpoints")[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)  # the second half is zeros
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step_00000005.pth cannot be read .* trying the one before"):
        resumed, _ = run("resumed", resume=True)
    assert_same_run(whole, resumed)
    read_newest(tmp_path / "resumed" / "checkpoints")


def test_a_corrupt_checkpoint_of_the_last_step_is_written_anew(run):
    folder, _ = run("whole")
    newest = list_checkpoints(folder / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="step_00000009.pth cannot be read"):
        run("whole", resume=True)
    assert read_newest(folder / "checkpoints")[0] == newest


def test_one_flipped_bit_in_a_checkpoint_is_noticed(run, tmp_path):
    folder, _ = run("whole")
    newest = list_checkpoints(folder / "checkpoints")[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of a tensor
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match="cannot be read"):
        path, _ = read_newest(folder / "checkpoints")
    assert path.name == "step_00000008.pth"


def test_when_no_checkpoint_can_be_read_resuming_is_refused(run):
    folder, _ = run("whole")
    for path in list_checkpoints(folder / "checkpoints"):
        path.write_bytes(b"nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="none of the 9 checkpoints"):
            run("whole", resume=True)


def test_a_run_killed_before_its_first_checkpoint_resumes_from_the_start(run, tmp_path):
    whole, _ = run("whole", **{"checkpoint.every_steps": 5})
    kill_after(whole, 0, tmp_path / "resumed")
    log = tmp_path / "resumed" / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))
    resumed, _ = run("resumed", resume=True)
    assert_same_run(whole, resumed)


DAMAGE = {  # dotted place in a checkpoint -> a value whose checksum is right; None: the place is deleted
    "meta.step": {"a": 1},
    "meta": [],
    "loader.step": "3",
    "loader.position": 10**400,
    "loader.epoch": -1,
    "loader.faults": "none",
    "loader.faults.x": 1.5,
    "loader": None,
    "state_dict": 3,
    "optimizer.optimizer.state.0.exp_avg": None,
    "optimizer.optimizer.state.1.exp_avg_sq": torch.zeros(3, 5, 7),
    "optimizer.optimizer.state.1.exp_avg": torch.zeros(1),
    "optimizer.optimizer.state.2": "x",
    "optimizer.optimizer.param_groups": {"lr": 1},
    "optimizer.optimizer.param_groups.0": 7,
    "optimizer.scaler": None,
    "health": 5,
}


@pytest.fixture(scope="module")
def short_run(images, tmp_path_factory):
    """A run of nine steps that was killed after its second."""
    place = tmp_path_factory.mktemp("short")
    (place / "tiny.py").write_text(RECIPE)
    pretrain = {"work_dir": place / "whole", "data": images, "device": "cpu", "num_workers": 0}
    a2mim.pretrain(place / "tiny.py", **pretrain, **{"log.report": False})
    for path in list_checkpoints(place / "whole" / "checkpoints")[2:]:
        path.unlink()
    return place / "whole"


@pytest.mark.parametrize("place", DAMAGE)
def test_a_wrong_value_with_a_right_checksum_is_one_sentence(short_run, tmp_path, place):
    folder = shutil.copytree(short_run, tmp_path / "damaged")
    first, newest = list_checkpoints(folder / "checkpoints")
    first.unlink()
    checkpoint = inside = torch.load(newest, weights_only=True)
    *path, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    for key in path:
        inside = inside[key]
    if DAMAGE[place] is None:
        del inside[last]
    else:
        inside[last] = DAMAGE[place]
    torch.save(checkpoint, newest)
    before = newest.read_bytes()
    with pytest.raises(ValueError, match="checkpoint") as caught:
        a2mim.pretrain(short_run.parent / "tiny.py", work_dir=folder, resume=True, device="cpu", num_workers=0)
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 700
    assert [path.read_bytes() for path in list_checkpoints(folder / "checkpoints")] == [before]


@pytest.mark.parametrize("every", [{"checkpoint.every_steps": 5}, {"checkpoint.every_steps": None}])
def test_a_run_whose_checkpoints_are_lost_is_a_question_and_keeps_its_log(run, every):
    folder, _ = run("lost", **every)
    log = (folder / "log.jsonl").read_bytes()
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match=r"has logged 9 steps and holds no checkpoint.*to start over"):
        run("lost", resume=True)
    assert (folder / "log.jsonl").read_bytes() == log


def test_damaged_lines_of_the_log_are_counted_and_the_others_kept(run):
    folder, _ = run("damaged")
    lines = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    bad = [b"\xff\xfe{\n", b"[1, 2]\n", b'{"loss": 1}\n']
    (folder / "log.jsonl").write_bytes(b"".join([*lines[:2], *bad, *lines[2:]]))
    with pytest.warns(UserWarning, match="3 damaged lines are left out, 9 are kept"):
        run("damaged", resume=True)
    assert (folder / "log.jsonl").read_bytes().splitlines(keepends=True) == lines


def test_a_damaged_record_is_said_and_the_checkpoint_s_copy_used(run, tmp_path):
    whole, _ = run("whole")
    kill_after(whole, 4, tmp_path / "resumed")
    (tmp_path / "resumed" / "settings.json").write_text("{")
    (tmp_path / "resumed" / "summary.json").write_bytes(b"\xff")
    with pytest.warns(UserWarning) as said:
        resumed, _ = run("resumed", resume=True, data=None)
    assert any("settings.json is damaged" in str(w.message) for w in said)
    assert any("summary.json is damaged" in str(w.message) for w in said)
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


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def break_half_way(checkpoint, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", break_half_way)
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(tmp_path / "step_00000001.pth", {})
    assert list_checkpoints(tmp_path) == []


def test_the_log_is_cut_back_to_the_step_that_is_resumed_and_half_a_line_goes(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    keep_lines_until(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def command(recipe, images, folder, *more):
    return [
        *(sys.executable, "-m", "a2mim.cli", "pretrain", str(recipe), "--data", str(images)),
        *("--work-dir", str(folder), "--device", "cpu", "--num-workers", "0", *more),
    ]


def start_and_wait_for_step(arguments, folder, step):
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / f"step_{step:08d}.pth").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_equals_the_uninterrupted_run(run, recipe, images, tmp_path):
    longer = {"schedule.epochs": 12}
    whole, _ = run("whole", **longer)
    folder, arguments = tmp_path / "killed", ["--cfg-options", "schedule.epochs=12"]
    for step, resume in ((2, []), (17, ["--resume"])):
        process = start_and_wait_for_step(command(recipe, images, folder, *resume, *arguments), folder, step)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        assert len(list_checkpoints(folder / "checkpoints")) < 36
    run("killed", resume=True, **longer)
    assert_same_run(whole, folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_exits_with_its_code(run, recipe, images, tmp_path, number):
    folder = tmp_path / "stopped"
    arguments = command(recipe, images, folder, "--cfg-options", "schedule.epochs=2000", "checkpoint.every_steps=3")
    process = start_and_wait_for_step(arguments, folder, 3)
    os.kill(process.pid, number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    last = list_checkpoints(folder / "checkpoints")[-1]
    assert f"saved in {last}" in printed
    assert "--resume" in printed
    assert torch.load(last, weights_only=True)["meta"]["step"] == log_of(folder)[-1]["step"]
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"


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


STATEFUL = {
    "moving average": {
        "model.target": {"type": "MovingAverage", "maps": ["blocks.2", "blocks.3"]},
        "model.losses": [{"type": "MaskedSmoothL1"}],
    },
    "frozen teacher, averaged weights": {
        "model.target": {"type": "FrozenFeatures", "source": "resnet18"},
        "model.losses": [{"type": "MaskedCosine"}],
        "ema": 0.1,
    },
    "random teacher": {
        "model.target": {"type": "RandomFeatures", "channels": 16, "depth": 2},
        "model.losses": [{"type": "PatchDiscrimination"}],
        "model.masking": {"type": "InverseBlock", "mask_patch_size": 16, "mask_ratio": 0.5},
    },
    "sparse": {
        "model.encoder": {"name": "resnet18", "hide": "sparse", "maps": ["layer1", "layer2", "layer3", "layer4"]},
        "model.decoder": {"type": "LightDecoder", "width": 64},
        "data.img_size": 64,
        "model.masking": {"type": "BlockMask", "mask_patch_size": 32, "mask_ratio": 0.5},
    },
    "drop": {
        "model.encoder": {"name": "vit_tiny_patch16_224", "hide": "drop"},
        "model.decoder": {"type": "TransformerDecoder", "embed_dim": 32, "depth": 1, "num_heads": 4},
        "model.target": {"type": "NormalizedPatches", "channels": "together"},
        "model.losses": [{"type": "MaskedL2"}],
    },
}


def flat_state(state, prefix=""):
    """{path: value} of nested dictionaries."""
    found = {}
    for key, value in state.items():
        found |= flat_state(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def states_after_a_kill(call, overrides, tmp_path):
    """The flat states of two runs; the second is killed with SIGKILL after its fourth step, and goes on.

    Args:
        call: "a2mim.pretrain('recipe.py', data='images'", without its end.
        overrides: settings of both runs.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    folders = [tmp_path / "whole", tmp_path / "killed"]
    call = f"import a2mim; {call}, num_workers=0, device='cpu'"
    commands = [f"{call}, work_dir={str(folder)!r}, **{overrides!r})" for folder in folders]
    subprocess.run([sys.executable, "-c", commands[0]], check=True, env=environment, capture_output=True, timeout=300)
    with subprocess.Popen(
        [sys.executable, "-c", commands[1]], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.time() + 240
        while len(list_checkpoints(folders[1] / "checkpoints")) < 4 and time.time() < deadline:
            time.sleep(0.01)
        process.kill()
    for path in list_checkpoints(folders[1] / "checkpoints")[4:]:
        path.unlink()
    again = f"{call}, work_dir={str(folders[1])!r}, resume=True)"
    subprocess.run([sys.executable, "-c", again], check=True, env=environment, capture_output=True, timeout=300)
    assert log_of(folders[0]) == log_of(folders[1])
    return [flat_state(weights_of(folder)) for folder in folders]


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEFUL)
def test_a_run_with_a_state_of_its_own_is_killed_and_goes_on_bit_for_bit(recipe, images, tmp_path, name):
    call = f"a2mim.pretrain({str(recipe)!r}, data={str(images)!r}"
    states = states_after_a_kill(call, STATEFUL[name] | {"export": []}, tmp_path)
    assert_same_state(*states)
    held = [key for key in states[0] if "_extra_state/networks" in key]
    assert bool(held) == ("teacher" in name or "average" in name)

"""Runs that are killed and resumed, and how two runs are compared."""

import json
import os
import shutil
import subprocess
import sys
import time

import torch

from a2mim.checkpoints import list_checkpoints


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

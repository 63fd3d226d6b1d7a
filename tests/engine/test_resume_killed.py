"""Processes that are killed or signalled, and go on bit for bit."""

import json
import os
import signal

import pytest
import torch
from resumed_runs import (
    assert_same_run,
    assert_same_state,
    command,
    log_of,
    start_and_wait_for_step,
    states_after_a_kill,
)

from a2mim.checkpoints import list_checkpoints


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


STATEFUL = {
    "moving average": {
        "model.target": {"type": "MovingAverage", "maps": ["blocks.2", "blocks.3"]},
        "model.losses": [{"type": "MaskedSmoothL1"}],
    },
    "frozen teacher, averaged weights": {
        "model.target": {"type": "FrozenFeatures", "source": "test_vit"},
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


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEFUL)
def test_a_run_with_a_state_of_its_own_is_killed_and_goes_on_bit_for_bit(recipe, images, tmp_path, name):
    call = f"a2mim.pretrain({str(recipe)!r}, data={str(images)!r}"
    states = states_after_a_kill(call, STATEFUL[name] | {"export": []}, tmp_path)
    assert_same_state(*states)
    held = [key for key in states[0] if "_extra_state/networks" in key]
    assert bool(held) == ("teacher" in name or "average" in name)

"""Runs whose weights are divided over two processes: the numbers of DDP, and checkpoints that know no difference."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from two_processes import start_two

import a2mim
from a2mim.checkpoints import checkpoint_path, read_checkpoint
from a2mim.engine.config import load_config
from a2mim.engine.failures import explained
from a2mim.engine.fsdp import blocks_of, check_divided, is_divided
from a2mim.engine.refine_settings import RefineSettings
from a2mim.processes.fsdp import divide

HERE = Path(__file__).parent
BEGIN = f"import sys; sys.path.insert(0, {str(HERE)!r})\nfrom divided_runs import *\njoin()\n"
END = "leave()\n"
WEIGHTS = ("state_dict", "ema_state_dict", "optimizer")


def state(folder, step):
    return read_checkpoint(checkpoint_path(folder / "checkpoints", step))


def logged(folder, key):
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def assert_close(one, other, within=1e-5, place=""):
    """The same containers, whose tensors differ by at most `within`, absolute plus relative."""
    if isinstance(one, torch.Tensor):
        assert type(one) is torch.Tensor and one.shape == other.shape and one.dtype == other.dtype, place
        torch.testing.assert_close(one, other, rtol=within, atol=within, msg=lambda told: f"{place}: {told}")
    elif isinstance(one, dict):
        assert list(one) == list(other), place
        for key, value in one.items():
            assert_close(value, other[key], within, f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, within, f"{place}.{number}")


def assert_same_training(folder, name, step, within=1e-5):
    whole, divided = (state(folder / f"{name}-{kind}", step) for kind in ("ddp", "fsdp"))
    assert list(whole) == list(divided)
    for part in WEIGHTS:
        if part in whole:
            assert_close(whole[part], divided[part], within, part)
    pairs = zip(*(logged(folder / f"{name}-{kind}", "loss") for kind in ("ddp", "fsdp")), strict=True)
    assert all(abs(one - other) <= within for one, other in pairs)


def two(program, tmp_path, images):
    """Runs the program in two processes."""
    variables = {"OUT": str(tmp_path), "IMAGES": str(images), "OMP_NUM_THREADS": "1"}
    for printed in start_two(tmp_path, BEGIN + program + END, **variables):
        assert printed.endswith("left\n"), printed


XCIT = """
LONG = {"schedule.epochs": 7, "accumulate": 2, "ema": 0.1, "activation_checkpointing": True, "clip_grad": 0.05}
LONG |= {"checkpoint.background": True, "checkpoint.every_steps": 9}
both("xcit", **QUIET, **LONG)
GO_ON = {"resume": True, "schedule.epochs": 7}
begun("xcit-fsdp", "again", 18)
train("again", **GO_ON)
begun("xcit-fsdp", "to-ddp", 18)
train("to-ddp", **GO_ON, **{"processes.strategy": "ddp"})
begun("xcit-ddp", "to-fsdp", 18)
train("to-fsdp", **GO_ON, **FSDP)
"""


@pytest.mark.slow
def test_fsdp_trains_as_ddp_does_resumes_exactly_and_shares_its_checkpoints(labelled, tmp_path, recipe, capsys):
    two(XCIT, tmp_path, labelled)
    assert_same_training(tmp_path, "xcit", 21)
    assert min(logged(tmp_path / "xcit-fsdp", "grad_norm")) > 0.05  # so that the limit was at work
    whole, divided = (state(tmp_path / f"xcit-{kind}", 21) for kind in ("ddp", "fsdp"))
    for part in WEIGHTS:
        assert_close(divided[part], state(tmp_path / "again", 21)[part], 0.0, part)  # exactly
        assert_close(divided[part], state(tmp_path / "to-ddp", 21)[part], place=part)
        assert_close(whole[part], state(tmp_path / "to-fsdp", 21)[part], place=part)
    checkpoint_path(tmp_path / "xcit-fsdp" / "checkpoints", 21).unlink()
    capsys.readouterr()
    here = {"device": "cpu", "num_workers": 0, "schedule.epochs": 7}
    summary = a2mim.pretrain(recipe, labelled, tmp_path / "xcit-fsdp", resume=True, **here)
    assert summary["status"] == "finished" and "one process divides nothing" in capsys.readouterr().out


FAMILIES = """
both("resnet", **QUIET, **RESNET, **{"schedule.epochs": 7, "checkpoint.every_steps": 21})
SHORT = {"schedule.epochs": 1, "schedule.warmup_epochs": 0}
both("teacher", **QUIET, **VIT, **TEACHER, **SHORT)
both("sparse", **QUIET, **SPARSE, **SHORT)
both("whole", export=["timm"], **SHORT)
both("tuned", text=TUNING, command="finetune", ema=0.1, **SHORT, **{"log.report": False, "log.every_steps": 1})
"""
UPDATES = """
import copy
from a2mim.engine.fsdp import OPTIMISERS
from a2mim.engine.optim import create_optimizer
from a2mim.processes.fsdp import divide, mesh_of_all, whole

torch.manual_seed(0)
plain = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
mesh = mesh_of_all(torch.device("cpu"))
for name in OPTIMISERS:
    one, other = copy.deepcopy(plain), copy.deepcopy(plain)
    divide(other, list(other), mesh)
    more = {"momentum": 0.9} if name in ("sgd", "momentum") else {}
    for model in (one, other):
        optimizer = create_optimizer([{"params": list(model.parameters())}], 0.1, name, 0.05, betas=(0.9, 0.99), **more)
        for step in range(3):
            model(torch.ones(2, 5) * (step + 1)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(one.parameters(), other.parameters()):
        assert torch.allclose(a, whole(b), atol=1e-6), name
"""


@pytest.mark.slow
def test_other_families_tasks_and_optimisers_give_with_fsdp_what_they_give_with_ddp(labelled, tmp_path):
    two(UPDATES + FAMILIES, tmp_path, labelled)
    assert_same_training(tmp_path, "resnet", 21)
    assert_same_training(tmp_path, "teacher", 3)
    assert_same_training(tmp_path, "sparse", 3)
    assert_same_training(tmp_path, "tuned", 3)
    exported = [load_file(tmp_path / f"whole-{kind}" / "encoder" / "model.safetensors") for kind in ("ddp", "fsdp")]
    assert_close(*exported)
    summaries = [json.loads((tmp_path / f"whole-{kind}" / "summary.json").read_text()) for kind in ("ddp", "fsdp")]
    assert summaries[0]["judged"]["after"]["knn"] == summaries[1]["judged"]["after"]["knn"]
    assert (tmp_path / "whole-fsdp" / "report.html").stat().st_size > 10_000
    assert sorted(path.name for path in (tmp_path / "whole-fsdp").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole-ddp").iterdir()
    )


def settings(recipe, **options):
    return load_config(recipe, {"processes.strategy": "fsdp", **options})


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"compile": "step"}, "compile='step'"),
        ({"compile": "encoder"}, "compile='encoder'"),
        ({"channels_last": True}, "channels_last=True"),
        ({"accumulate": "auto"}, "accumulate='auto'"),
        ({"optimizer.type": "lamb"}, "optimizer.type='lamb'"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_one_sentence(recipe, option, said):
    check_divided(settings(recipe))
    with pytest.raises(ValueError, match=rf"processes.strategy='fsdp' does not go with {said}.*leave the strategy out"):
        check_divided(settings(recipe, **option))


def test_refinement_is_refused(tmp_path):
    refined = load_config("refine/last_third", {"processes.strategy": "fsdp"}, kind=RefineSettings)
    with pytest.raises(ValueError, match="does not go with refinement, whose first epochs leave the encoder without"):
        check_divided(refined)


def test_one_process_has_nothing_to_divide(recipe):
    assert not is_divided(settings(recipe), 1) and is_divided(settings(recipe), 2)
    assert not is_divided(load_config(recipe), 2)


def test_a_weight_without_an_axis_is_refused_by_name():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].gain = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"cannot divide 0.gain of Sequential, which is one number without an axis"):
        divide(model, [], None)


def test_a_network_that_uses_weights_outside_their_block_ends_in_a_sentence(recipe):
    run = type("run", (), {"settings": settings(recipe)})
    for said in ("got mixed torch.Tensor and DTensor, need to convert all", "its data is not allocated yet."):
        assert "does not fit this network" in str(explained(RuntimeError(said), run, 1))


def test_blocks_are_divided_one_by_one_also_inside_stages():
    vit = a2mim.MaskedEncoder("test_vit", img_size=64, mask_patch_size=16)
    assert blocks_of(vit) == list(vit.model.blocks)
    stages = nn.Sequential(*(nn.Sequential(*(nn.TransformerEncoderLayer(4, 1, 4) for _ in range(2))) for _ in range(2)))
    found = blocks_of(nn.ModuleDict({"stages": stages}))
    assert found == [*stages[0], stages[0], *stages[1], stages[1]]  # inner ones first
    stem = a2mim.MaskedEncoder("test_resnet", img_size=64)  # whose convolutions stand in one list
    assert all(list(block.children()) for block in blocks_of(stem))
    stages[1][1].linear1.weight = stages[1][0].linear1.weight
    assert blocks_of(nn.ModuleDict({"stages": stages})) == [*stages[0], stages[0]]  # no block shares a weight

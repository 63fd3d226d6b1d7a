"""Pre-training from weights: they are what training starts from, strictly, and the run says which."""

import json

import pytest
import timm
import torch
from small_recipe import SMALL

from a2mim.checkpoints import read_newest

NAME = "xcit_nano_12_p16_224"


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(5)
    state = timm.create_model(NAME, num_classes=4, **SMALL).state_dict()
    torch.save({"teacher": {f"backbone.{key}": value for key, value in state.items()}}, tmp_path / "dino.pth")
    return tmp_path / "dino.pth", state


def weights_of(folder):
    state = read_newest(folder / "checkpoints")[1]["state_dict"]
    return {key.removeprefix("encoder.model."): value for key, value in state.items() if "encoder.model." in key}


def test_a_run_starts_from_the_weights_and_records_them_also_when_it_is_resumed(run, file, tmp_path):
    path, state = file
    settings = {"optimizer.base_lr": 0.0, "optimizer.weight_decay": 0.0, "schedule.min_lr": 0.0}
    folder, summary = run("started", init_from=str(path), **{**settings, "schedule.epochs": 2})
    trained = weights_of(folder)
    assert all(torch.equal(trained[key], state[key]) for key in ("blocks.3.attn.qkv.weight", "cls_token"))
    assert summary["start"]["recognised"].endswith("in teacher / backbone") and not summary["start"]["partial"]
    assert summary["start"]["loaded"] == len(trained) and summary["start"]["left_out"] == {"head": 2}
    assert "init_from" in (folder / "config.py").read_text()

    path.unlink()  # a run that goes on does not need it
    with pytest.warns(UserWarning, match="is judged as a random network: .*dino.pth does not exist"):
        _, again = run("started", resume=True, **{"schedule.epochs": 3})
    assert json.loads(json.dumps(again["start"])) == summary["start"]
    assert torch.equal(weights_of(folder)["blocks.3.attn.qkv.weight"], state["blocks.3.attn.qkv.weight"])


def test_weights_that_are_not_whole_need_a_word(run, file, tmp_path):
    path, state = file
    del state["norm.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"1 missing \(norm.bias\)"):
        run("refused", init_from=str(path))
    assert not (tmp_path / "refused" / "checkpoints").exists()
    _, summary = run("allowed", init_from=str(path), allow_partial=True, **{"schedule.epochs": 2})
    assert summary["start"]["partial"] and summary["start"]["missing"] == ["norm.bias"]


def test_a_name_alone_starts_from_nothing_and_is_refused(run):
    with pytest.raises(ValueError, match=f"write {NAME}:pretrained to start from timm's"):
        run("named", init_from=NAME)

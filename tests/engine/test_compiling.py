"""compile="step": one graph for the whole forward pass of training, and nothing else changes."""

import copy
from types import SimpleNamespace

import pytest
import torch

import a2mim
from a2mim.checkpoints import list_checkpoints
from a2mim.engine.assembly import build_mim
from a2mim.engine.compiling import check_masks, compile_parts, compile_step
from a2mim.engine.config import load_config
from a2mim.mim import MIM
from a2mim.wiring.hiding import Sparse

QUIET = {"schedule.warmup_epochs": 0, "judge.every_epochs": None, "log.report": False, "checkpoint.every_steps": 100}
VIT = {"name": "vit_tiny_patch16_224", "model_args": {"depth": 2, "embed_dim": 64, "num_heads": 2}}


class Counting:
    """A backend that runs graphs as they are, and counts them and the sizes in them that are no numbers."""

    def __init__(self):
        self.graphs, self.symbolic, self.calls = 0, 0, 0

    def __call__(self, graph, examples):
        self.graphs += 1
        sizes = [size for e in examples for size in (e.shape if isinstance(e, torch.Tensor) else [e])]
        self.symbolic += sum(isinstance(size, torch.SymInt) for size in sizes)

        def run(*inputs):
            self.calls += 1
            return graph.forward(*inputs)

        return run


@pytest.fixture
def counting(monkeypatch):
    torch._dynamo.reset()
    backend, compile_ = Counting(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: compile_(model, **how | {"backend": backend}))
    yield backend
    torch._dynamo.reset()


def weights(folder):
    return torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)["state_dict"]


def test_a_run_has_one_graph_and_the_weights_of_an_eager_one(run, counting):
    """With pictures on the way, several parts of a batch, averaged weights and stochastic depth."""
    changes = QUIET | {"schedule.epochs": 2, "log.pictures": 3, "accumulate": 2, "ema": 0.1}
    eager, _ = run("eager", **changes)
    assert counting.graphs == 0
    compiled, summary = run("step", compile="step", **changes)
    assert (counting.graphs, counting.symbolic, counting.calls) == (1, 0, 6 * 2)
    assert len(list((compiled / "reconstructions").glob("*.png"))) == 3 and summary["status"] == "finished"
    before, after = weights(eager), weights(compiled)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


TRANSFORMER = {"type": "TransformerDecoder", "embed_dim": 32, "depth": 1, "num_heads": 2}
VARYING = {"type": "MultiBlock", "mask_patch_size": 8}
ROWS = {
    "sparse": {
        "model.encoder": {"name": "test_resnet", "hide": "sparse"},
        "model.masking.mask_patch_size": 32,
        "model.decoder": {"type": "LightDecoder", "width": 32},
    },
    "dropped": {"model.encoder": VIT | {"hide": "drop"}, "model.decoder": TRANSFORMER},
    "masks that hide a varying number": {"model.encoder": VIT, "model.masking": VARYING},
    "a frozen teacher": {"model.encoder": VIT, "model.target": {"type": "FrozenFeatures", "source": "test_vit"}},
    "a random teacher": {"model.encoder": VIT, "model.target": "random"},
    "scales": {
        "model.encoder": {"name": "test_resnet", "hide": "sparse", "maps": ["layer3", "layer4"]},
        "model.masking.mask_patch_size": 32,
        "model.decoder": {"type": "EachScale", "decoder": {"type": "LightDecoder", "width": 32}},
        "model.target": {"type": "HOG", "cells": [8, 16]},
    },
    "a moving teacher": {"model.encoder": VIT, "model.target": {"type": "MovingAverage", "momentum": 0.5}},
}


def settings_of(changes):
    row = {"encoder": {}, "masking": {"type": "BlockMask", "mask_patch_size": 16}, "losses": [{"type": "MaskedL1"}]}
    return load_config({"model": row, "data": {"img_size": 64}}, dict(changes))


@pytest.mark.parametrize("changes", ROWS.values(), ids=list(ROWS))
def test_each_way_of_hiding_and_each_teacher_is_one_graph_also_after_a_picture(changes, counting, monkeypatch):
    monkeypatch.setattr(Sparse, "_counts_are_equal", lambda self: False)  # a graph cannot look; both add in one order
    model = build_mim(settings_of(changes)).train()
    check_masks(model, settings_of(changes))
    compile_step(model)
    hides = model.encoder.hide != "token"
    for step in range(3):
        images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
        mask, cells = model.draw(images, torch.Generator().manual_seed(step))
        known = {"hidden_cells": cells} if hides else {}
        losses = model(images, mask=mask, **known)
        torch.testing.assert_close(losses, model.forward(images, mask=mask, **known), rtol=0, atol=0)
        model.after_step(step + 1, 3)
        model.eval()
        with torch.no_grad():
            model(images[:3], mode="predict", generator=torch.Generator().manual_seed(0))
        model.train()
    assert (counting.graphs, counting.symbolic, counting.calls) == (1, 0, 3)
    assert copy.deepcopy(model)._compiled_call_impl is None


def test_masks_that_would_need_a_graph_a_step_are_refused():
    dropping = {"model.encoder": VIT | {"hide": "drop"}, "data.img_size": 128}
    settings = settings_of(dropping | {"model.masking": VARYING | {"mask_patch_size": 16}})
    with pytest.raises(ValueError, match=r"equally many cells in each step where hide='drop', and MultiBlock does not"):
        check_masks(build_mim(settings), settings)
    settings = settings_of({"model.encoder": VIT})
    model = build_mim(settings)
    model._mask_needs_images = lambda: True
    with pytest.raises(ValueError, match="BlockMask reads them: choose compile='encoder'"):
        check_masks(model, settings)


def test_a_part_that_cannot_be_traced_is_one_sentence_before_any_weight_changes(run, counting, monkeypatch, tmp_path):
    compare = MIM.compare

    def stubborn(self, recon, target, hidden):
        if recon.requires_grad and float(recon.detach().sum()) == 1234.5:
            raise AssertionError
        return compare(self, recon, target, hidden)

    monkeypatch.setattr(MIM, "compare", stubborn)
    with pytest.raises(
        ValueError, match=r"compile='step' cannot make one graph of this step \(.+\): go on with --resume"
    ):
        run("stubborn", compile="step", **QUIET | {"schedule.epochs": 1})
    assert not list_checkpoints(tmp_path / "stubborn" / "checkpoints")
    _, summary = run("stubborn", resume=True, compile=False)
    assert summary["status"] == "finished"


@pytest.mark.filterwarnings("ignore:.* is a name with random weights")
def test_fine_tuning_is_one_graph_and_refinement_is_refused(labelled, tmp_path, counting):
    data = {"test_data": labelled / "test", "device": "cpu", "num_workers": 0, "export": [], "log.report": False}
    data |= {"schedule.epochs": 2, "schedule.warmup_epochs": 0, "global_batch_size": 8, "data.img_size": 32}
    sized = {"data.test_size": 48, "evaluate.every_epochs": 1}
    a2mim.finetune(
        "finetune/rsb_a3", "test_resnet", labelled / "train", tmp_path / "f", **data, **sized, compile="step"
    )
    assert (counting.graphs, counting.symbolic) == (1, 0)
    refine = {"heads.alone_epochs": 0, "judge.every_epochs": None}
    with pytest.raises(ValueError, match="compile='step' is not for refinement"):
        a2mim.refine("test_vit", labelled / "train", tmp_path / "r", **data, **refine, compile="step")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("how", [True, "encoder", False])
def test_true_and_encoder_compile_the_network_alone(how, counting):
    settings = settings_of({"model.encoder": VIT, "compile": how})
    model = build_mim(settings)
    compile_parts(SimpleNamespace(model=model, network=model.encoder), settings)
    model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert counting.graphs == (how is not False) and model._compiled_call_impl is None

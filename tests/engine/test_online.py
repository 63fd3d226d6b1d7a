"""Probes on the way cost little, say what they measure, and leave training as it is."""

import json

import pytest
import torch
from two_processes import run_pair

from a2mim.batchnorm import calibrate_batchnorm
from a2mim.checkpoints import list_checkpoints, read_newest
from a2mim.data import EvalLoader, open_dataset
from a2mim.engine import online
from a2mim.evaluation import judge
from a2mim.pixels import normalize
from a2mim.weights.loading import load_encoder

KNN_ALONE = ["epoch", "knn_interval", "knn_top1", "step"]


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(online, "SHARE", float("inf"))


def lines(folder):
    return [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder):
    return read_newest(folder / "checkpoints")[1]


def test_training_is_the_same_bit_for_bit_with_it_and_without(run, labelled, always):
    changes = {"data": labelled, "ema": 0.5, "schedule.epochs": 2}  # XCiT's patch embedding has BatchNorm
    judged, _ = run("judged", **changes)
    plain, _ = run("plain", **changes, **{"judge.every_epochs": None})
    a, b = weights(judged), weights(plain)
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(value, b[part][key]) for key, value in a[part].items())
    assert [line["loss"] for line in lines(judged) if "loss" in line] == [line["loss"] for line in lines(plain)]
    assert len(a["online_knn"]) == 2
    assert "online_knn" not in b


def test_each_probe_is_that_of_the_encoder_at_that_step(run, labelled, always):
    folder, summary = run("run", data=labelled, **{"judge.k": 3, "schedule.epochs": 2})
    found = summary["online_knn"]
    assert found["images"] == [24, 12]
    logged = [line for line in lines(folder) if "knn_top1" in line]
    assert [{key: line[key] for key in found["history"][0]} for line in logged] == found["history"]
    model, _ = load_encoder(list_checkpoints(folder / "checkpoints")[-1])
    train, test = (EvalLoader(open_dataset(labelled, split), 32, None, "bilinear") for split in ("train", "test"))
    calibrate_batchnorm(model, (normalize(batch["images"]) for batch in train))
    whole = judge(model, train, test, k=3)
    for probe in ("knn", "linear", "attentive"):
        assert found["history"][-1][f"{probe}_top1"] == pytest.approx(whole[probe]["top1"]), probe
        assert found["history"][-1][f"{probe}_interval"] == pytest.approx(whole[probe]["interval"]), probe


def test_where_only_the_k_nn_has_time_it_goes_alone(run, labelled, monkeypatch):
    monkeypatch.setattr(online, "SHARE", 1e9)
    monkeypatch.setattr(online, "PROBES", (1e12, 1.0))
    _, summary = run("run", data=labelled, **{"schedule.epochs": 1, "schedule.warmup_epochs": 0})
    assert [sorted(line) for line in summary["online_knn"]["history"]] == [
        ["epoch", "knn_interval", "knn_top1", "step"]
    ]


def test_a_bank_of_one_class_has_no_probe_to_train(run, labelled, always, monkeypatch):
    taken = online.OnlineKNN.features

    def of_one_class(self, *arguments, **named):
        return [
            (features, torch.zeros_like(labels), kept) for features, labels, kept in taken(self, *arguments, **named)
        ]

    monkeypatch.setattr(online.OnlineKNN, "features", of_one_class)
    _, summary = run("run", data=labelled, **{"schedule.epochs": 1, "schedule.warmup_epochs": 0})
    assert [sorted(line) for line in summary["online_knn"]["history"]] == [
        ["epoch", "knn_interval", "knn_top1", "step"]
    ]


def test_it_never_costs_more_than_its_share(run, labelled):
    _, summary = run("run", data=labelled, **{"schedule.epochs": 4})
    found = summary["online_knn"]
    assert found["share_of_time"] <= online.SHARE
    assert len(found["history"]) + found["passed_over"] == 4


def test_a_history_that_stays_empty_is_explained(run, labelled, monkeypatch):
    monkeypatch.setattr(online, "SHARE", 1e-9)
    _, summary = run("run", data=labelled, **{"schedule.epochs": 2})
    found = summary["online_knn"]
    assert found["history"] == [] and found["passed_over"] == 2
    assert "no k-NN on the way: at every epoch's end it would have taken more than" in found["note"]


def test_what_was_found_before_a_resume_is_kept(run, labelled, always, tmp_path):
    folder, whole = run("run", data=labelled)
    for path in list_checkpoints(folder / "checkpoints")[4:]:
        path.unlink()
    _, resumed = run("run", data=labelled, resume=True)
    assert resumed["online_knn"]["history"] == whole["online_knn"]["history"]
    assert [line["step"] for line in lines(folder) if "knn_top1" in line] == [3, 6, 9]


def test_without_labels_it_is_not_there(run):
    _, summary = run("run", **{"schedule.epochs": 1, "schedule.warmup_epochs": 0})
    assert "online_knn" not in summary


JUDGED_BY_ALL = """
import sys, torch
from a2mim.data import EvalLoader
from a2mim.engine import online
from a2mim.processes import leading

online.SHARE, online.BATCH, whole, taken = float("inf"), 5, EvalLoader.share, online.OnlineKNN.features

def noted(self, rank, size):
    if rank:
        print("share of", size, file=sys.stderr, flush=True)
    return whole(self, rank, size)

def compared(self, *arguments, **named):
    shared = taken(self, *arguments, **named)
    held, leading._leads[:] = list(leading._leads), []
    alone = taken(self, *arguments, **named)
    leading._leads[:] = held
    assert all(torch.equal(one, other) for pair in zip(shared, alone) for one, other in zip(*pair))
    print("equal", file=sys.stderr, flush=True)
    return shared

EvalLoader.share, online.OnlineKNN.features = noted, compared
from a2mim.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_several_processes_judge_together_with_the_numbers_of_one(recipe, run, labelled, tmp_path):
    (tmp_path / "start.py").write_text(JUDGED_BY_ALL)
    told = run_pair(
        *(tmp_path / "start.py", "pretrain", recipe, "--data", labelled),
        *("--work-dir", tmp_path / "pair", "--device", "cpu", "--num-workers", "0"),
        *("--cfg-options", "schedule.epochs=2"),
    )
    assert told.count("share of 2") == 2 + 2 * 2  # on the way, kept from then on; before and after
    assert told.count("equal") == 2
    assert [line["step"] for line in lines(tmp_path / "pair") if "knn_top1" in line] == [3, 6]
    assert weights(tmp_path / "pair")["meta"]["step"] == 6

    def judged():
        folder = tmp_path / "pair"
        return [json.loads((folder / name).read_text()) for name in ("summary.json", "results.json")]

    together = judged()
    run("pair", data=labelled, resume=True, **{"schedule.epochs": 2})  # a finished run: it is only judged again
    alone = judged()
    assert alone[0]["judged"] == together[0]["judged"] and alone[1] == together[1]
    assert len(alone[1]) == 3 and all(set(result["correct"]) <= set("01") for result in alone[1])

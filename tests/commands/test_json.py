"""`--json` of every command: one JSON document on standard output and nothing else, also where the work writes."""

import json

import pytest
from tiny_project import write_project

from a2mim.cli import build_parser, main
from a2mim.commands.help import commands_of

CPU = ["--device", "cpu"]
# a command -> (its arguments, a key of its result); they run in this order, the later on what the earlier wrote
CALLS = {
    "pretrain": (["tiny.py", "--data", "photographs", "--work-dir", "run", "--num-workers", "0", *CPU], "loss"),
    "refine": (["run", "--recipe", "tiny_refine.py", "--data", "photographs", "--work-dir", "refined", *CPU], "steps"),
    "finetune": (["tiny_finetune.py", "run", "--data", "photographs", "--work-dir", "tuned", *CPU], "loss"),
    "evaluate": (["run", "photographs", "--protocol", "dino-knn", "--out", "results", *CPU], "top1"),
    "knn": (["run", "--data", "photographs", "--test-data", "photographs", *CPU], "top1"),
    "linear-probe": (["run", "--data", "photographs", "--test-data", "photographs", "--epochs", "1", *CPU], "top1"),
    "compare": (["results", "results", "--anyway"], "points"),
    "export": (["run", "--to", "safetensors", "--out", "exported", *CPU], "target"),
    "verify": (["exported"], "mode"),
    "embed": (["run", "photographs/train", "--out", "features.npz", *CPU], "width"),
    "report": (["run", "--out", "page.html"], "report"),
    "analyze": (["run", "--data", "photographs", "--what", "rank", *CPU], None),
    "check-model": (["test_vit"], "sites"),
    "shards make": (["photographs/train", "shards"], "images"),
    "shards index": (["shards/*.tar"], "bytes"),
    "shards check": (["shards/*.tar"], "faults"),
    "shards ls": (["shards/*.tar", "--samples"], "label"),
    "shards reshard": (["shards/*.tar", "smaller", "--short-side", "32"], "images"),
    "measure-stats": (["photographs"], "mean"),
    "bench-data": (["photographs", "--images", "8", "--workers", "0"], None),
    "recipes": ([], "name"),
    "settings": (["seed"], "pretrain"),
}
ELSEWHERE = {"worth-it"}  # it takes a minute: tests/engine/test_worth*.py


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    write_project(folder)
    return folder


def test_every_command_is_tried():
    assert {name for name, _ in commands_of(build_parser())} == {*CALLS, *ELSEWHERE}


@pytest.mark.slow
def test_the_result_of_every_command_is_all_that_is_on_standard_output(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    monkeypatch.setenv("A2MIM_CACHE", str(place / "cache"))
    for name, (words, key) in CALLS.items():
        status = main([*name.split(), *words, "--json"])
        said = capfd.readouterr()
        assert status == 0, (name, said.err[-2000:])
        result = json.loads(said.out)
        assert result, name
        first = result[0] if isinstance(result, list) else result
        assert key is None or key in first, (name, list(first))

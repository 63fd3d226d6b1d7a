"""Behaviour is what it was when it was recorded; tests/frozen/freeze.py measures it and says how to renew a record."""

import functools
import shutil
from pathlib import Path

import pytest
import torch
from frozen import freeze

from a2mim.cli import main

RECIPES = Path(__file__).parents[1] / "configs"
RECORDS = freeze.read_records()["records"]


@functools.cache
def same_arithmetic() -> bool:
    """Whether bits can be compared: the machine computes as the one that wrote the records."""
    return freeze.fingerprint() == freeze.read_records()["fingerprint"]


@pytest.mark.skipif(
    torch.__version__.partition("+")[0] != freeze.read_records()["torch"],
    reason="the records are of another torch, which draws other weights",
)
@pytest.mark.parametrize("name", freeze.SUBJECTS)
def test_behaviour_is_as_recorded(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = freeze.measure(name, tmp_path)
    assert found["settings"] == RECORDS[name]["settings"]
    assert not freeze.differences(RECORDS[name], found, exactly=False)
    if same_arithmetic():
        assert not freeze.differences(RECORDS[name], found, exactly=True)


@pytest.mark.parametrize("name", ["old/vit, run again", "batches/shards", "evaluation/features"])
def test_another_seed_is_noticed_with_and_without_the_same_arithmetic(name, tmp_path):
    found = freeze.measure(name, tmp_path, seed=1)
    assert freeze.differences(RECORDS[name], found, exactly=True)
    assert freeze.differences(RECORDS[name], found, exactly=False)


def test_every_recipe_is_recorded():
    for folder, names in ((RECIPES, freeze.PRETRAIN), (RECIPES / "finetune", freeze.FINETUNE)):
        assert sorted(path.stem for path in folder.glob("*.py")) == sorted(names)
    assert list(RECORDS) == list(freeze.SUBJECTS)
    assert all(record["reason"] for record in RECORDS.values())


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_an_old_export_is_still_verified(name, tmp_path, capsys):
    shutil.copytree(freeze.OLD / name / "export", tmp_path / "export")
    assert main(["verify", str(tmp_path / "export")]) == 0
    assert "timm computes the same features" in capsys.readouterr().out


def test_what_is_frozen_is_small_and_names_no_machine():
    files = [path for path in freeze.HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    for path in files:
        content = path.read_bytes()
        assert not any(word in content for word in (b"/home/", b"/root", b"/tmp/", b"/usr/")), path

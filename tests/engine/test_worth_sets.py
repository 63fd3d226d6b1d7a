"""`a2mim worth-it` from images to its answer, on one drawn set of each kind whose right answer is known."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def sets():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "worth_it.py"
    spec = importlib.util.spec_from_file_location("worth_it_sets", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # timm asks for the module of a network that is registered
    spec.loader.exec_module(module)
    return module


def test_the_sets_are_what_they_say(sets, tmp_path):
    """The label of "helps" is the pattern that an image shows; "cannot" has labels by lot."""
    for kind in ("helps", "cannot"):
        sets.draw(kind, 0, tmp_path / kind)
        labelled = tmp_path / kind / "labelled" / "train"
        names = sorted(path.relative_to(labelled).parts for path in labelled.rglob("*.png"))
        shown = [int(Path(name).stem) % len(sets.WAVES) for _, name in names]
        told = [int(folder.removeprefix("class")) for folder, _ in names]
        same = sum(a == b for a, b in zip(shown, told, strict=True)) / len(names)
        assert same == 1 if kind == "helps" else same < 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seeds"), [("helps", 3), ("cannot", 2), ("small", 2)])
def test_the_answer_to_a_drawn_set_is_right(sets, kind, seeds, tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "SEEDS", seeds)
    found = sets.answer(kind, 0, tmp_path)
    assert found["answer"] in sets.KINDS[kind][0], found["sentence"]
    tuned = next((tmp_path / "out" / "runs").glob("*finetune-100"))
    settings = json.loads((tuned / "settings.json").read_text())
    assert settings["data"]["test_size"] == settings["data"]["img_size"] == sets.SIZE

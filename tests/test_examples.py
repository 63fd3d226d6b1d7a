"""The examples in the docstrings of the public names are executed, in a folder that holds what they name."""

import contextlib
import doctest
import io
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tiny_project import write_project

import a2mim
import a2mim.losses
import a2mim.masking
from a2mim.evaluation.shown import Record, Records, Sentence


def example_of(name):
    """The examples of a public name, whatever it is: a function, a class, or a room that can be called."""
    public = getattr(a2mim, name)
    public = getattr(public, name) if name == "export" else public
    return doctest.DocTestParser().get_examples(public.__doc__ or "")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photographs, recipes and a finished run; its summary."""
    folder = tmp_path_factory.mktemp("examples")
    write_project(folder)
    with contextlib.chdir(folder):
        a2mim.pretrain("tiny.py", "photographs", "runs/tiny", device="cpu", num_workers=0)
    return folder


@pytest.mark.parametrize("name", a2mim.__all__)
def test_the_example_of_a_public_name_shows_what_it_says(name, place, tmp_path, monkeypatch):
    for part in place.iterdir():
        (tmp_path / part.name).symlink_to(part) if part.name != "runs" else None
    (tmp_path / "runs").mkdir()
    if name != "pretrain":
        (tmp_path / "runs" / "tiny").symlink_to(place / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    examples = example_of(name)
    assert examples
    values = {"a2mim": a2mim, "torch": torch}
    for example in examples:
        shown = []
        monkeypatch.setattr(sys, "displayhook", shown.append)
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(example.source, name, "single"), values)
        assert "".join(f"{value!r}\n" for value in shown) == example.want, example.source


def test_results_show_themselves_in_a_notebook_and_stay_what_they_were(place, monkeypatch):
    monkeypatch.chdir(place)
    features, labels = torch.eye(4), torch.arange(4)
    judged = a2mim.knn(features, labels, features, labels, k=1)
    results = a2mim.evaluate("runs/tiny", ["dino-knn"], "photographs", device="cpu")
    for shown, kind in ((judged, dict), (results, list), (a2mim.compare(results[0], results[0]), str)):
        assert isinstance(shown, kind)
        assert shown._repr_html_().startswith(("<table>", "<p>"))
    assert "<th>top1</th><td>100</td>" in judged._repr_html_()
    shown = results._repr_html_()  # some columns, which fit on a page; the rest is in the dicts
    assert "<th>protocol</th><td>dino-knn</td>" in shown and "<th>interval</th>" in shown and "sources" not in shown
    assert pickle.loads(pickle.dumps(results))._repr_html_() == shown
    dataset = a2mim.open_dataset("photographs")
    assert dataset._repr_html_().count("<img") == 8 and "cats" in dataset._repr_html_()


def test_a_run_shows_its_verdict_its_loss_and_its_pictures(place):
    summary = a2mim.pretrain(
        place / "tiny.py", place / "photographs", place / "runs" / "again", device="cpu", num_workers=0
    )
    shown = summary._repr_html_()
    assert summary["loss"]["last"] > 0 and isinstance(summary, dict)
    for part in (
        "test_vit was pre-trained on 16 images",
        "<svg",
        "data:image/webp",
        "report.html",
        "learning",
        "--series-1:",
    ):
        assert part in shown, part
    assert pickle.loads(pickle.dumps(summary)) == summary
    shutil.rmtree(place / "runs" / "again")
    assert "<th>status</th><td>finished</td>" in summary._repr_html_()  # the folder has gone; the record stays


def test_what_comes_from_a_run_is_escaped():
    assert "<script>" not in Record({"<script>": "<script>"})._repr_html_()
    assert "<b>" not in Sentence("<b>")._repr_html_()
    assert "<b>" not in Records([{"a": "<b>"}, {"b": 1}])._repr_html_()


def test_every_public_name_is_documented_on_the_page_of_the_api():
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    for name in a2mim.__all__:
        assert f".{name}\n" in page, name

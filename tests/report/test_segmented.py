"""Segmentation on the page: at most eight pictures from the run's own folder, a legend, and nothing that runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_runs import make_run

from a2mim.report import read_run, render, write_report
from a2mim.report.page import MOST_BYTES as page_bound
from a2mim.report.segmented import MOST_BYTES


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    monkeypatch.setattr("a2mim.report.page.svg", lambda plot: "")


ATTACK = '"><script>alert(1)</script>'


def segmented(folder: Path, protocols=("seg-linear",), pictures=8, height=30, **changes) -> Path:
    """A run that was judged by segmentation into its own folder."""
    run, results = make_run(folder), []
    (run / "segmentation").mkdir()
    generator = np.random.default_rng(0)
    for name in protocols:
        files = [f"segmentation/{name}-{number}.png" for number in range(pictures)]
        for file in files:
            Image.fromarray(generator.integers(0, 255, (height, 58, 3), np.uint8)).save(run / file)
        entries = [{"file": file, "name": f"images/{i}.png", "miou": 61.25} for i, file in enumerate(files)]
        legend = [{"label": "0 brick", "colour": "#f2183c"}, {"label": "ignored", "colour": "#808080"}]
        result = {"protocol": name, "constants": {}, "correct": "", "top1_last": 61.2, "interval": [58.0, 64.0]}
        results.append(result | {"oracle": 80.1, "pictures": entries, "legend": legend} | changes)
    (run / "results.json").write_text(json.dumps(results))
    return run


def test_the_page_shows_eight_pictures_with_a_text_and_the_colours(tmp_path):
    without = render([read_run(make_run(tmp_path / "plain"))])
    page = render([read_run(segmented(tmp_path / "a", pictures=10))])
    assert page.count("<img") == without.count("<img") + 8 and 'id="segmentation"' not in without
    assert "images/0.png: the image, its mask, and what seg-linear predicts, mIoU 61.2 %" in page
    assert "seg-linear: mIoU 61.2 % (95 % interval 58.0 to 64.0); the right class for every cell gives 80.1 %." in page
    assert '<span style="background: #f2183c"></span>0 brick' in page


def test_a_run_that_was_not_judged_stands_beside_one_that_was(tmp_path):
    page = render([read_run(segmented(tmp_path / "a")), read_run(make_run(tmp_path / "b"))])
    assert page.count("what seg-linear predicts") == 3 and "This run was not judged by segmentation." in page


def test_names_and_colours_of_a_stranger_are_inert(tmp_path):
    run = segmented(
        tmp_path / "a",
        protocols=("seg-knn",),
        protocol=ATTACK,
        legend=[{"label": ATTACK, "colour": "#112233"}, {"label": "x", "colour": "red; background: url(http://a.b)"}],
    )
    results = json.loads((run / "results.json").read_text())
    results[0]["pictures"][0]["name"] = ATTACK
    (run / "results.json").write_text(json.dumps(results))
    page = render([read_run(run)])
    assert "<script" not in page and "url(" not in page and page.count("&lt;script&gt;") >= 3


@pytest.mark.parametrize("file", ["../secret.png", "/secret.png", "segmentation/../secret.png", "secret.png", 5, None])
def test_a_picture_elsewhere_is_not_shown(tmp_path, file):
    run = segmented(tmp_path / "a", pictures=1)
    results = json.loads((run / "results.json").read_text())
    results[0]["pictures"] = [{"file": file, "name": "stolen"}]
    (run / "results.json").write_text(json.dumps(results))
    for place in (tmp_path, run):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / "secret.png")
    assert "stolen" not in render([read_run(run)])


@pytest.mark.parametrize("value", [None, 5, "x", float("nan"), [[]], {"a": []}, ["x"]], ids=repr)
def test_results_of_any_types_make_a_page(tmp_path, value):
    run = segmented(tmp_path / "a", pictures=2)
    (good,) = json.loads((run / "results.json").read_text())
    damaged = [good | dict.fromkeys(good, value), *(good | {key: value} for key in good)]
    damaged.append(good | {"pictures": [dict.fromkeys(("file", "name", "miou"), value), value]})
    for result in damaged:
        (run / "results.json").write_text(json.dumps([result, value]))
        assert "</html>" in render([read_run(run)])


def test_pictures_of_several_protocols_stay_within_the_bound(tmp_path, monkeypatch):
    run = segmented(tmp_path / "a", protocols=("seg-linear", "seg-knn"), height=1500)
    with monkeypatch.context() as patch:
        patch.setattr("a2mim.report.segmented.MOST_BYTES", 400_000)
        page = write_report([run], tmp_path / "r.html").read_text(encoding="utf-8")
    sizes = [len(source) for source in re.findall(r'src="(data:[^"]+)" width="58" height="1500"', page)]
    assert 3 <= len(sizes) < 16 and sum(sizes) <= 400_000
    assert page.count("what seg-linear predicts") < page.count("what seg-knn predicts")  # the newest come first
    assert page_bound / 2 >= MOST_BYTES

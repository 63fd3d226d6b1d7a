"""Every run leaves a page that shows it, named first among its last lines, and never pays much for it."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from a2mim.engine import report_hook
from a2mim.engine.report_hook import ReportHook, write_page
from a2mim.report import read_run
from a2mim.report.pictures import reconstruction_rows

SHORT = {"schedule.epochs": 1, "schedule.warmup_epochs": 0}


def test_a_run_leaves_a_page_with_tiles_and_names_it_first(run, capsys):
    folder, summary = run("whole", **SHORT, **{"model.losses.0.weight": 2.0})
    lines = capsys.readouterr().out.splitlines()
    end = next(i for i, line in enumerate(lines) if line.startswith("finished"))
    assert lines[end + 1] == f"  report   {folder / 'report.html'}"
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "xcit_nano_12_p16_224 was pre-trained on 24 images" in text
    rows = reconstruction_rows(read_run(folder).pictures)
    assert len(rows) == 2 and [tile.caption for tile in rows[0]] == ["image", "visible", "step 0", "step 3"]
    assert summary["origins"]["clip_grad"] == "recipe" and summary["origins"]["seed"] == "default"
    assert summary["origins"]["model.losses"] == "command line"
    assert summary["machine"]["cores"] and summary["versions"]["torch"]


def test_the_sidecar_says_where_the_panels_lie(run):
    folder, _ = run("whole", **SHORT)
    layout = json.loads((folder / "reconstructions" / "layout.json").read_text())
    with Image.open(folder / "reconstructions" / "step_00000003.png") as picture:
        sheet = np.asarray(picture.convert("RGB"))
    width, height = layout["tile"]
    assert sheet.shape[1] == 4 * width + 3 * layout["gap"]
    assert sheet.shape[0] == layout["header"] + 2 * height + layout["gap"]
    body = sheet[layout["header"] :]
    assert (body[:, width : width + layout["gap"]] == 255).all()  # exactly the gap between two columns
    assert np.array_equal(body[:height, :width][::5, ::5], body[:height, :width][4::5, 4::5])  # a pixel is 5 x 5


def test_a_killed_run_has_a_page_and_the_page_says_so(run, tmp_path):
    folder, _ = run("whole", **SHORT)
    shutil.copytree(folder, tmp_path / "killed")
    summary = json.loads((folder / "summary.json").read_text()) | {"status": "running", "steps": None}
    (tmp_path / "killed" / "summary.json").write_text(json.dumps(summary))
    write_page(tmp_path / "killed")
    assert "did not finish" in (tmp_path / "killed" / "report.html").read_text(encoding="utf-8")
    write_page(tmp_path / "killed", running=True)
    assert "still going on" in (tmp_path / "killed" / "report.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_ends_nothing(run, monkeypatch):
    monkeypatch.setattr(report_hook, "write_report", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="was not written .ZeroDivisionError"):
        _, summary = run("whole", **SHORT)
    assert summary["status"] == "finished"


def test_pages_on_the_way_stay_within_their_share_of_the_time(monkeypatch, tmp_path):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(report_hook.time, "perf_counter", lambda: clock.now)
    written = []

    def page(folder, running):
        assert running
        written.append(clock.now)
        clock.now += 3.0

    monkeypatch.setattr(report_hook, "write_page", page)
    hook = ReportHook()
    hook.before_train(None)
    for _ in range(1000):
        clock.now += 1.0
        hook.write(tmp_path)
    assert len(written) == 3 and 3 * len(written) <= 0.01 * clock.now
    assert written[0] == 200  # the first page is guessed to take two seconds


def test_a_run_shows_its_features_before_and_after(run, labelled):
    quick = {"judge.train_images": 24, "judge.test_images": 12, "judge.k": 3}
    folder, _ = run("whole", data=labelled, **SHORT, **quick)
    told = json.loads((folder / "representation" / "representation.json").read_text())
    assert [part["title"] for part in told["parts"]] == ["Feature maps", "Nearest neighbours"]
    assert [len(part["rows"]) for part in told["parts"]] == [6, 8]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "feature map of image 1 after pre-training" in text and "Spectrum of the reconstruction" in text


def test_without_labels_the_features_are_shown_all_the_same(run):
    folder, _ = run("whole", **SHORT)
    told = json.loads((folder / "representation" / "representation.json").read_text())
    assert [len(part["rows"]) for part in told["parts"]] == [6, 8]

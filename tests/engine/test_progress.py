"""In a file, progress is whole lines; in a terminal and a notebook it is a bar."""

import io
import sys
from types import SimpleNamespace

from tqdm import tqdm

from a2mim.engine import progress
from a2mim.engine.progress import Lines, start_progress


def test_a_file_gets_a_whole_line_every_fifteen_seconds(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    out = io.StringIO()
    lines = Lines(100, 0, out)
    for step in range(1, 101):
        clock.now = float(step)
        lines.set_postfix_str(f"loss {step}")
        lines.update()
    lines.close()
    text = out.getvalue()
    assert "\r" not in text and text.endswith("\n")
    told = text.splitlines()
    assert [line.split()[1].split("/")[0] for line in told] == ["15", "30", "45", "60", "75", "90", "100"]
    assert told[0] == "step 15/100 (15%), 00:15 spent, 01:25 left, loss 15"


def test_a_run_without_a_terminal_writes_no_carriage_return(run, capfd):
    run("whole", **{"schedule.epochs": 1, "schedule.warmup_epochs": 0})
    told = capfd.readouterr().err
    assert "step 3/3 (100%)" in told and "\r" not in told.split("step 3/3")[0]


def test_a_terminal_gets_a_bar_and_slurm_lines(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert isinstance(start_progress(10, 0, shown=True), tqdm)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert isinstance(start_progress(10, 0, shown=True), Lines)
    assert start_progress(10, 0, shown=False).disable
    kernel = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setattr(progress, "notebook_tqdm", lambda **given: ("notebook", given["total"]))
    assert start_progress(10, 0, shown=True) == ("notebook", 10)

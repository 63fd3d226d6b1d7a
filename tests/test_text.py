"""Names from files cannot move a terminal's cursor, begin a line, or leave the quotes that they stand in."""

import io
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from a2mim.cli import main
from a2mim.text import (
    LONGEST,
    PrintableStream,
    ProgressBar,
    code_span,
    has_terminal,
    one_line,
    shortened,
    warn_user,
    yaml_value,
)

HOSTILE = [
    "\x1b[2J\x1b[H",
    "a\r\nerror: forged",
    "\u202egpj.exe",
    "\x00\x07\x9b",
    "a\u2028b\u2029c",
    "\udce9",
    "\x1b]0;x\x07",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_is_one_printable_line(text):
    for made in (one_line(text), shortened(text), code_span(text), yaml_value(text)):
        assert made.isprintable()
    assert one_line("flowers – été 花") == "flowers – été 花"


def test_what_is_long_is_cut_in_the_middle():
    assert len(shortened("x" * 10_000)) <= LONGEST + 3


@pytest.mark.parametrize("text", ["`", "``a```", "`a", "", "<b>", "a`b"])
def test_a_code_span_ends_where_its_text_ends(text):
    span = code_span(text)
    ticks = span[: len(span) - len(span.lstrip("`"))]
    inner = span[len(ticks) : -len(ticks)]
    assert span.startswith(ticks) and span.endswith(ticks) and ticks not in inner
    assert not inner.startswith("`") and not inner.endswith("`")


@pytest.mark.parametrize("text", ["mit", "cc-by-4.0", "no", "- x", "a: b", "x\n---\ny", "null", "1.0", '"', "#c"])
def test_a_yaml_value_is_read_back_as_the_text(text):
    assert yaml.safe_load(f"license: {yaml_value(text)}") == {"license": one_line(text)}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_stream_escapes_all_but_line_breaks(text):
    out = io.StringIO()
    print(text, "a\tb", file=PrintableStream(out))
    assert all(c.isprintable() or c in "\n\t" for c in out.getvalue())


def test_an_error_of_the_command_is_one_line_whatever_the_name(capsys):
    assert main(["verify", "no\x1b[2J\nerror: all is well\u202e"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error[:-1].isprintable()
    assert sys.stdout is not None


@pytest.fixture
def ticking(monkeypatch):
    """(standard error, which is a file; a clock that the test sets)."""
    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", out)
    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return out, now


def test_progress_in_a_file_is_a_whole_line_every_fifteen_seconds(ticking):
    out, now = ticking
    with ProgressBar(total=100, desc="features", unit="image", leave=False, file=out) as bar:
        for _ in range(100):
            now[0] += 1
            bar.update()
    lines = out.getvalue().splitlines(keepends=True)
    assert "\r" not in out.getvalue() and all(line.endswith("\n") for line in lines)
    assert [line.split()[1] for line in lines] == [f"{n}/100" for n in (15, 30, 45, 60, 75, 90, 100)]
    assert lines[0] == "features: 15/100 (15%), 00:15 spent, 01:25 left\n"


def test_short_work_and_a_loop_over_anything_say_little_in_a_file(ticking):
    out, now = ticking
    for _ in ProgressBar(range(10), desc="short", file=out):
        now[0] += 1
    assert out.getvalue() == ""
    for _ in ProgressBar(iter(range(20)), desc="unknown", unit="row", file=out):
        now[0] += 1
    assert out.getvalue().startswith("unknown: 15 row, 00:15 spent\n") and "\r" not in out.getvalue()


def test_slurm_and_files_have_lines_and_a_terminal_has_a_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert has_terminal() and not ProgressBar(range(3), file=io.StringIO()).lines
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not has_terminal()
    monkeypatch.setattr(ProgressBar.__mro__[1], "__module__", "tqdm.notebook")
    assert has_terminal()


def test_a_message_has_a_bearable_length_whatever_the_name(capsys):
    assert main(["verify", "x" * 100_000]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: xxx") and error.endswith("\n") and len(error) < 2100


def test_a_class_name_moves_no_cursor_and_forges_no_line(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    for number, name in enumerate(["cat\x1b[2J\nerror: forged", "dog\r\u202egpj"] * 2):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(tmp_path / "images" / name / f"{number}\x1b]0;x\x07.png")
    assert main(["shards", "make", str(tmp_path / "images"), str(tmp_path / "out"), "--processes", "1"]) == 0
    assert main(["shards", "ls", str(tmp_path / "out" / "shard-000000.tar"), "--samples", "--processes", "1"]) == 0
    said = capsys.readouterr()
    lines = (said.out + said.err).splitlines()
    assert all(line.replace("\t", "").isprintable() and not line.lstrip().startswith("error:") for line in lines)
    assert any(r"cat\x1b[2J\nerror: forged" in line for line in lines)


def test_a_warning_names_the_line_that_called_a2mim():
    """In a notebook, Python shows that line below the warning."""
    inside: dict = {"warn_user": warn_user, "no_grad": torch.no_grad, "__name__": "a2mim.somewhere"}
    exec("@no_grad()\ndef within(): warn_user('few images')\ndef entry(): within()", inside)
    with pytest.warns(UserWarning, match="few images") as caught:
        inside["entry"]()
    assert caught[0].filename == __file__


def test_a_notebook_without_ipywidgets_gets_a_bar_and_no_warning():
    code = """
import sys, types, warnings
warnings.simplefilter("error")
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].get_ipython = lambda: types.SimpleNamespace(config={"IPKernelApp": 1})
sys.modules["ipywidgets"] = None
from a2mim.text import ProgressBar
ProgressBar(total=1, disable=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""`benchmarks/gpu.py` runs whole where there is no GPU, and a part that goes wrong does not stop the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ENDINGS = """
import os, subprocess, sys, time
from pathlib import Path
from gpu_parts.isolation import run_part

watched, held = os.pipe()

def fails(findings):
    findings.add("first", good=True)
    raise ValueError("too small")

def crashes(findings):
    findings.add("first")
    os._exit(7)

def lasts(findings):
    findings.add("first")
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[held])
    time.sleep(60)

def ends(findings, good=True):
    findings.add("first", good=good)

def doubts(findings):
    ends(findings, good=False)

if __name__ == "__main__":
    for part in (fails, crashes, ends, doubts, lasts):
        outcome = run_part(part, (), Path(sys.argv[1]) / part.__name__, limit=3 if part is lasts else 60)
        print("=", part.__name__, outcome.status, outcome.good, len(outcome.found), outcome.error)
    os.close(held)
    print("left behind:", os.read(watched, 1))  # ends when nobody holds the other end
"""


def test_a_part_that_fails_crashes_or_lasts_too_long_is_named_and_keeps_what_it_found(tmp_path):
    script = tmp_path / "endings.py"
    script.write_text(ENDINGS)
    environ = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    done = subprocess.run([sys.executable, script, tmp_path], env=environ, capture_output=True, text=True, timeout=300)
    said = [line.split(maxsplit=5)[1:] for line in done.stdout.splitlines() if line.startswith("= ")]
    assert said == [
        ["fails", "failed", "False", "1", "ValueError: too small"],
        ["crashes", "failed", "False", "1", "its process ended with 7"],
        ["ends", "done", "True", "1", "None"],
        ["doubts", "done", "False", "1", "None"],
        ["lasts", "out", "of", "time", "False 1 stopped after 3 s"],
    ], done.stderr
    assert "left behind: b''" in done.stdout  # what the part had started was stopped too


@pytest.mark.slow
def test_the_dry_run_answers_every_question(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--dry-run", "--out", tmp_path / "out", "--budget", "1800"]
    environ = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert result["dry"] and not result["not_good"]
    found = {name: part["found"] for name, part in result["parts"].items()}
    assert {name for name, part in result["parts"].items() if part["status"] == "done"} == set(found)
    assert list(found) == ["machine", "parity", "waits", "rivals", "resuming", "data", "speed"]
    assert {row["what"].split(", ")[1] for row in found["parity"]} == {"fp32", "tf32", "bf16"}
    assert [row["waits"] for row in found["waits"]] == [0, 0]
    assert [row["resumed_differs_by"] for row in found["resuming"]] == [0, 0]
    assert found["data"][1]["steps"] and 0 <= found["data"][1]["waiting"] < 1
    steps = [row["what"].split(", ")[1:] for row in found["speed"] if "whole_over_bare" in row]
    assert {kind for kind, _, _ in steps} == {"eager", "encoder", "step"}
    assert {layout for _, _, layout in steps} == {"contiguous", "channels_last"}
    table = (tmp_path / "out" / "gpu.md").read_text()
    assert table in done.stdout
    assert "| whole / bare |" in table and "FAILED" not in table

"""Runs that are killed at random moments end with the weights of an undisturbed one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parents[2] / "tools" / "fuzzing" / "kills.py"


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_alike(tmp_path):
    command = [sys.executable, KILLS, "--kills", "3", "--seed", "0"]
    done = subprocess.run(
        command, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills: 3" in done.stdout

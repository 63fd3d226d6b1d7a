"""Every command, over files that a stranger might send: no payload runs, no connection opens, no traceback shows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_files import LINES, leaves

from a2mim.cli import build_parser

SCRIPT = Path(__file__).with_name("foreign_files.py")


def test_no_command_is_forgotten():
    assert set(leaves(build_parser())) <= set(LINES)


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0"])
def test_a_strangers_files_run_nothing_in_any_command(seed, tmp_path):
    place, home = tmp_path / "place", {"XDG_CACHE_HOME": str(tmp_path / "cache"), "MPLCONFIGDIR": str(tmp_path / "mpl")}
    place.mkdir()
    done = subprocess.run(
        [sys.executable, SCRIPT, seed], cwd=place, env=os.environ | home, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) > 200
    for each in told:
        line = " ".join(each["words"])
        assert not each["found"] and not each["trace"], each
        assert each["status"] == each["expected"] or (each["expected"] is None and each["status"] in (0, 1)), each
        problems = [text for text in each["err"].splitlines() if text.startswith("error: ")]
        assert len(problems) == (each["status"] if "shards check" not in line else len(problems)), (line, each["err"])
        for text in (each["out"] + each["err"]).splitlines():
            assert text.replace("\t", "").isprintable(), (line, text)

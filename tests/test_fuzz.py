"""A few attempts of tools/fuzz.py on each kind of file, and proof that it notices what it is there to notice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"

BROKEN = """
import json, os, socket, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fuzzing import guard

guard.SECONDS, guard.MEMORY = 0.3, 1 << 30

def other_error(content):
    raise AttributeError("inside")

def endless(content):
    while True:
        pass

def outside(content):
    Path(sys.argv[2], "outside").touch()

def connects(content):
    with socket.socket() as connection:
        connection.settimeout(0.1)
        try:
            connection.connect(("127.0.0.1", 9))
        except OSError:
            pass

def payload(content):
    Path("fuzz_mark").touch()

def long_error(content):
    raise ValueError("x" * 5000)

def nameless(content):
    raise ValueError("something is wrong")

def accepts(content):
    assert False, "another value"

def hungry(content):
    bytearray(2 << 30)

WAYS = [other_error, endless, outside, connects, payload, long_error, nameless, accepts, hungry,
        lambda content: os._exit(3), lambda content: os.kill(os.getpid(), 11)]

def kind(way):
    def make(folder):
        path = folder / "file"
        path.write_bytes(b"whole")
        other = {path: lambda content, draw: b"other"}
        return guard.Subject([path], lambda: path.read_bytes() == b"whole" or way(path.read_bytes()), other)
    return make

for way in WAYS:
    outcome = guard.fuzz(way.__name__, kind(way), 60, rounds=1, first=3)
    print(json.dumps(outcome.failures))
"""


@pytest.mark.slow
def test_damaged_files_of_every_kind_end_in_a_short_error_of_ours(tmp_path):
    command = [sys.executable, TOOLS / "fuzz.py", "--seconds", "600", "--rounds", "6"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_the_fuzzer_notices_every_other_end_of_a_reader(tmp_path):
    (tmp_path / "script.py").write_text(BROKEN)
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, tmp_path / "script.py", TOOLS, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(tmp_path / "tmp")})
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [
        *("AttributeError: inside", "processor time", "wrote to", "socket.connect", "a payload was run"),
        *("an error of 5000 letters", "names no file", "another value", "MemoryError", "status 3", "SIGSEGV"),
    ]
    assert len(said) == len(expected)
    for failures, word in zip(said, expected, strict=True):
        assert len(failures) == 1 and word in failures[0], (failures, word)

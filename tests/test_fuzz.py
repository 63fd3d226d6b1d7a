"""A few seconds of tools/fuzz.py: a damaged file ends in a short error of ours, or is read as it is."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[1] / "tools" / "fuzz.py")
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damaged_files_end_in_a_short_error_of_ours(kind, tmp_path):
    counts = fuzz.fuzz(kind, tmp_path, seconds=3, rounds=30)
    assert sum(counts.values()) > 0


def test_the_fuzzer_notices_a_reader_that_dies_otherwise(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"whole")

    def read():
        if path.read_bytes() != b"whole":
            raise AttributeError("inside")

    monkeypatch.setitem(fuzz.KINDS, "broken", lambda folder: ([path], read))
    with pytest.raises(AssertionError, match="broken, seed 0, round 1, file: AttributeError: inside"):
        fuzz.fuzz("broken", tmp_path, seconds=5)

import time
from pathlib import Path

import numpy as np
import pytest
from loopback import quick

from a2mim.data import open_dataset
from a2mim.data.errors import ShardError
from a2mim.data.shards.tarfiles import TarError


@pytest.fixture
def access(tmp_path):
    return quick(tmp_path / "cache", allow_pipe=True)


def test_a_command_gives_the_shard_that_it_writes(shards, tmp_path, access):
    local = open_dataset(shards)
    piped = open_dataset([f"pipe:cat {tmp_path}/part-{k}.tar" for k in range(4)], access=access)
    assert piped.fingerprint == local.fingerprint and np.array_equal(piped.read(30), local.read(30))
    braces = open_dataset(f"pipe:cat {tmp_path}/part-{{0..3}}.tar", access=access)
    assert braces.fingerprint == local.fingerprint


def test_a_command_is_not_run_unless_it_is_allowed(tmp_path):
    with pytest.raises(ValueError, match=r"'pipe:touch .*' would run a command in a shell; add --allow-pipe"):
        open_dataset(f"pipe:touch {tmp_path}/ran", access=quick(tmp_path / "cache"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "command, error, message",
    [
        ("cat {shard}; echo no space left >&2; exit 3", ShardError, "ended with status 3: no space left, after 3 att"),
        ("no-such-command-at-all", ShardError, r"ended with status 127: .*not found[^,]*$"),
        ("head -c 7000 {shard}", TarError, r"pipe:head .*: byte \d+: cut short"),
        ("head -c 6144 {shard}", TarError, r"pipe:head .*: byte 6144: no end-of-archive marker"),
        ("true", TarError, "empty or cut short"),
        ("sleep 5 & sleep 5", ShardError, r"no byte in 0\.25 s, after 3 attempts"),
        ("cat {shard}; exec 1>&-; sleep 5", ShardError, "closed its output and did not end"),
    ],
)
def test_a_command_that_fails_is_one_sentence_and_leaves_nothing(shards, tmp_path, access, command, error, message):
    began = time.monotonic()
    with pytest.raises(error, match=message):
        open_dataset("pipe:" + command.format(shard=tmp_path / "part-0.tar"), access=access)
    assert time.monotonic() - began < 6
    assert not list((tmp_path / "cache").rglob("*.tar")) and not list((tmp_path / "cache").rglob("*.part"))


def test_a_command_that_fails_once_is_tried_again(shards, tmp_path, access):
    command = f"pipe:test -e {tmp_path}/again && cat {tmp_path}/part-0.tar || (touch {tmp_path}/again; false)"
    assert len(open_dataset(command, access=access)) == 12


def test_a_command_that_is_given_up_is_ended_with_its_children(tmp_path, access):
    with pytest.raises(ShardError, match="no byte"):
        open_dataset(f"pipe:(sleep 30 & echo $! >> {tmp_path}/children; wait)", access=access)
    time.sleep(0.05)
    for child in (tmp_path / "children").read_text().split():
        state = Path(f"/proc/{child}/stat")
        assert not state.exists() or ") Z " in state.read_text()  # gone, or dead and not yet collected

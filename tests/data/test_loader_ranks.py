"""Real processes, killed and started again in another number: the stream must not notice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from batch_streams import loader

SCRIPT = Path(__file__).with_name("stream_rank.py")
STEPS = 5  # 40 images, batches of 8


def start(folder, shards, world: int, workers: int, epochs: int) -> list[subprocess.Popen]:
    meeting = f"meeting-{time.monotonic_ns()}"
    common = dict(os.environ, WORLD_SIZE=str(world), MEETING=meeting, OMP_NUM_THREADS="1")
    command = [sys.executable, str(SCRIPT), str(folder), shards, str(workers), "fork", str(epochs)]
    output = open(folder / f"{meeting}.txt", "w")  # noqa: SIM115
    with output:
        return [
            subprocess.Popen(command, env=common | {"RANK": str(rank)}, stdout=output, stderr=subprocess.STDOUT)
            for rank in range(world)
        ]


def said(folder) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("meeting-*.txt")))


def lines(folder) -> list[str]:
    """Whole lines of the log, in the order written."""
    log = folder / "log"
    return [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")] if log.exists() else []


def kill_when(folder, processes, position: int) -> None:
    """SIGKILL to every rank, workers' parents first, as soon as the log has reached a position."""
    deadline = time.monotonic() + 100
    while not any(int(line.split()[0]) >= position for line in lines(folder)):
        assert all(process.poll() is None for process in processes), said(folder)
        assert time.monotonic() < deadline, said(folder)
        time.sleep(0.002)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    assert {process.wait() for process in processes} == {-signal.SIGKILL}


def uninterrupted(dataset, epochs: int) -> dict[int, list[int]]:
    """Position -> ids, from one process in this one."""
    train = loader(dataset, seed=3)
    return dict(enumerate(batch["ids"].tolist() for _ in range(epochs) for batch in train))


def run_chain(folder, shards, chain, epochs: int) -> dict[int, set[str]]:
    """Position -> all that was logged for it. chain: (processes, workers, position to be killed at or None)."""
    for world, workers, stop in chain:
        processes = start(folder, shards, world, workers, epochs)
        if stop is not None:
            kill_when(folder, processes, stop)
            continue
        assert [process.wait(100) for process in processes] == [0] * world, said(folder)
    found = {}
    for line in lines(folder):
        position, rest = line.split(maxsplit=1)
        found.setdefault(int(position), set()).add(rest)
    return found


@pytest.mark.slow
def test_killed_and_resumed_with_other_ranks_and_workers_the_stream_is_the_same(shards, dataset, tmp_path):
    """2 -> 1 -> 4 processes and 1 -> 0 -> 2 -> 0 workers, killed in three different epochs."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    expected = run_chain(whole, shards, [(1, 0, None)], epochs=4)
    chain = [(2, 1, 3), (1, 0, 8), (4, 0, 12), (2, 2, None)]
    found = run_chain(cut, shards, chain, epochs=4)
    assert list(expected) == list(range(4 * STEPS))
    assert found == expected  # one hash a position: what was done twice after a kill was the same as well
    assert all(len(hashes) == 1 for hashes in found.values())
    ids = {position: json.loads(next(iter(hashes)).rsplit(maxsplit=1)[0]) for position, hashes in found.items()}
    assert ids == uninterrupted(dataset, 4)
    for epoch in range(4):
        shown = Counter(i for position in range(epoch * STEPS, (epoch + 1) * STEPS) for i in ids[position])
        assert shown == Counter(range(40))

"""How a run divides the cores of its machine between data processes and torch's threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

MOST_WORKERS = 16
THREADS_ARE_CHOSEN = "OMP_NUM_THREADS"  # torch takes its threads from it; who sets it has divided the cores


def usable_cores() -> int:
    """Cores for this process: those that it may use, shared with the other processes of its torchrun."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on a Mac
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def choose_workers(num_workers: int | None, device: torch.device, laptop: bool) -> int:
    """Data processes of this process: as many as were asked for, else, beside a GPU, one for each core but that of
    the training loop, up to 16.

    Beside a CPU there are none, as the network needs all cores; but one at laptop scale, whose short steps gain less
    from another thread than from batches that are ready.

    Raises:
        ValueError: a negative number.
    """
    if num_workers is None:
        if device.type == "cuda":
            return min(MOST_WORKERS, max(1, usable_cores() - 1))
        return int(laptop and usable_cores() > 1 and THREADS_ARE_CHOSEN not in os.environ)
    if num_workers < 0:
        raise ValueError(f"--num-workers {num_workers} must be at least 0; 0 prepares the batches in the main process")
    return num_workers


@contextlib.contextmanager
def core_for_data(num_workers: int, device: torch.device, laptop: bool) -> Iterator[None]:
    """Inside, torch leaves a core to the data process, where `choose_workers` counts on that."""
    before = torch.get_num_threads()
    if num_workers and laptop and device.type == "cpu" and THREADS_ARE_CHOSEN not in os.environ:
        torch.set_num_threads(max(1, min(before, usable_cores() - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)

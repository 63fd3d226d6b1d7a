"""Batches prepared ahead by worker processes, or here, in the order of the requests.

Workers write into a ring of batches in shared memory, laid out once: what travels through a pipe is a slot's number,
the labels and the ids. Shipping finished batches instead costs a shared-memory file, its page faults and a descriptor
for each of them, a tenth to a fifth of the throughput. The batch handed out is a copy, so that it belongs to whoever
took it. Threads were measured beside this and are about as fast on two cores (docs/data.md has the figures); processes
are kept because Python's lock is the training loop's too, and because transforms draw from generators that a process
has once: seeded for one thread, they would be seeded for all.
"""

import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count, islice

import numpy as np
import torch
from torch.utils.data import DataLoader

from a2mim.data.batches import Batches

SHARED = "/dev/shm"  # where Linux keeps shared memory
START_METHODS = ("fork", "spawn", "forkserver")

Request = tuple[int, np.ndarray]  # epoch, ids


class Workers:
    """One stream of batches after another from the same processes.

    Args:
        batches: what makes one batch of a request.
        size: images in a batch, at most.
        num_workers: processes; 0: this one.
        prefetch: batches a worker prepares ahead.
        start_method: "fork", "spawn" or "forkserver"; None: Python's own choice. A script that starts workers by the
            last two needs `if __name__ == "__main__":` around what it does.
        pin_memory: hand out batches in memory that a GPU copies from without waiting.
    """

    def __init__(
        self,
        batches: Batches,
        size: int,
        num_workers: int = 0,
        prefetch: int = 2,
        start_method: str | None = None,
        pin_memory: bool = False,
    ):
        _check(num_workers, prefetch, start_method)
        slots = num_workers * prefetch + 1  # all that are under way, and the one being copied
        self._ring = batches.ring = _shared_ring((slots, size, *batches.shape), batches.dtype) if num_workers else None
        self._requests = _Requests(max(1, num_workers), slots)
        self._pin = pin_memory
        many = {"prefetch_factor": prefetch, "persistent_workers": True, "worker_init_fn": _settle}
        many["multiprocessing_context"] = start_method
        self._loader = DataLoader(
            batches,
            sampler=self._requests,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=as_it_is,
            # each pass draws a number for the workers: not from the generator that the network draws from
            generator=torch.Generator(),
            **(many if num_workers else {}),
        )

    def run(self, requests: Iterable[Request]) -> Iterator[dict]:
        """Yields what `Batches` makes of each request; with workers, its images are copied out of the ring."""
        self._requests.items = requests
        for batch in self._loader:
            if "slot" in batch:
                batch["images"] = self._copy(self._ring[batch.pop("slot"), : batch.pop("count")])
            yield batch

    def _copy(self, images: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(images, pin_memory=self._pin, memory_format=torch.contiguous_format).copy_(images)


class _Requests:
    """A sampler of (epoch, ids, slot, ahead), set anew for each pass; it is read ahead of the batches handed out.

    Requests go to the workers in turn, so the next one of the same worker is known: its ids are what to read ahead.

    It does not know its Workers: in a cycle, the garbage collector would close the workers' pipes before they are told
    to stop, and every loader that is dropped would wait five seconds for each.
    """

    items: Iterable[Request] = ()

    def __init__(self, workers: int, slots: int):
        self.workers, self.slots = workers, slots

    def __iter__(self):
        coming, known = iter(self.items), deque()
        for number in count():
            known.extend(islice(coming, self.workers + 1 - len(known)))
            if not known:
                return
            epoch, ids = known.popleft()
            ahead = known[self.workers - 1][1] if len(known) == self.workers else ids[:0]
            if number < self.workers:  # nothing announced the first ones
                ahead = np.concatenate([ids, ahead])
            yield epoch, ids, number % self.slots, ahead


def _shared_ring(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory that is promised but missing ends a process without a word when it is touched: refused here instead."""
    bytes_ = int(np.prod(shape)) * dtype.itemsize
    free = shutil.disk_usage(SHARED).free if sys.platform == "linux" else None
    if free is not None and bytes_ > free:
        raise ValueError(
            f"the workers' batches need {bytes_ >> 20} MiB of shared memory and {SHARED} has {free >> 20} MiB free;"
            " lower num_workers or the batch size, or enlarge it (docker run --shm-size=8g)"
        )
    return torch.empty(shape, dtype=dtype).share_memory_()


def _settle(worker: int) -> None:
    """torch gives a worker one thread; so does this for OpenCV, which transforms may use."""
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)


def as_it_is(batch):
    return batch


def _check(num_workers: int, prefetch: int, start_method: str | None) -> None:
    if num_workers < 0:
        raise ValueError(f"num_workers={num_workers} must be at least 0")
    if prefetch < 1:
        raise ValueError(f"prefetch={prefetch} must be at least 1")
    if start_method is not None and start_method not in START_METHODS:
        raise ValueError(f"start_method={start_method!r} is unknown; choose one of {', '.join(START_METHODS)}")

"""Prepares batches ahead, in worker processes or in this one, in the order of the requests.

Workers write into a ring of batches in shared memory that is allocated once. Only the slot's number, the labels and the
ids go through a pipe. Sending finished batches instead costs a shared-memory file, its page faults and a descriptor per
batch: 10 to 20 % of the throughput. A batch is copied out of the ring before it is yielded, so the caller owns it.

Threads are about as fast on two cores (docs/data.md has the figures). Processes are used for two reasons: the training
loop needs Python's global lock too, and transforms draw from generators that exist once per process, so that seeding
them for one thread would change them for all threads.
"""

import contextlib
import errno
import os
import re
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from a2mim.data.batches import Batches
from a2mim.data.records import Request, WorkerBatch

SHARED = "/dev/shm"  # Linux's shared memory
START_METHODS = ("fork", "spawn", "forkserver")

_DIED = re.compile(r"DataLoader worker \(pid.*?(exited unexpectedly|is killed by signal: ([\w ]+))", re.DOTALL)


class WorkerDied(OSError):
    """A data worker ended without an answer; the message gives the most likely cause and the remedy."""


class Workers:
    """Worker processes that serve one pass after another.

    Args:
        batches: makes the batch of a request.
        size: greatest number of images in a batch.
        num_workers: processes; 0: this one.
        prefetch: batches that each worker prepares ahead.
        start_method: "fork", "spawn" or "forkserver"; None: Python's default. With the last two, a script must protect
            its main code by `if __name__ == "__main__":`.
        pin_memory: yield batches in pinned memory, from which a GPU copies without waiting.
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
        slots = num_workers * prefetch + 1  # all batches in progress, and the one that is being copied
        self._ring = batches.ring = _shared_ring((slots, size, *batches.shape), batches.dtype) if num_workers else None
        self._requests = _Requests(max(1, num_workers), slots)
        self._pin = pin_memory
        many: dict[str, Any] = {"prefetch_factor": prefetch, "persistent_workers": True, "worker_init_fn": _settle}
        many["multiprocessing_context"] = start_method
        self._loader: DataLoader[WorkerBatch] = DataLoader(
            batches,
            sampler=self._requests,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=as_it_is,
            # each pass draws a seed for the workers; it must not come from the network's generator
            generator=torch.Generator(),
            **(many if num_workers else {}),
        )

    def run(self, requests: Iterable[Request]) -> Iterator[WorkerBatch]:
        """Yields the batch of each request. Images from workers are copied out of the ring.

        Raises:
            WorkerDied: a worker was killed.
        """
        self._requests.items = requests
        with explained_death():
            coming = iter(self._loader)
        while True:
            with explained_death():
                made = next(coming, None)
            if made is None:
                return
            if made.images is None and made.error is None:
                assert self._ring is not None and made.ids is not None  # a worker answers with a slot of the ring
                made = replace(made, images=self._copy(self._ring[made.slot, : len(made.ids)]))
            yield made

    def _copy(self, images: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(images, pin_memory=self._pin, memory_format=torch.contiguous_format).copy_(images)


class _Requests:
    """A sampler of requests with a slot; its items are set before each pass. It is read ahead of the yielded batches.

    Requests go to the workers in turn, so the next request of the same worker is known, and its ids can be read ahead.

    It holds no reference to its Workers. In a cycle, the garbage collector would close the workers' pipes before they
    are told to stop, and dropping a loader would wait 5 s for each worker.
    """

    items: Iterable[Request] = ()

    def __init__(self, workers: int, slots: int):
        self.workers, self.slots = workers, slots

    def __iter__(self):
        coming = iter(self.items)
        known: deque[Request] = deque()
        for number in count():
            known.extend(islice(coming, self.workers + 1 - len(known)))
            if not known:
                return
            request = known.popleft()
            ahead = known[self.workers - 1].ids if len(known) == self.workers else request.ids[:0]
            if number < self.workers:  # no earlier request announced the first ones
                ahead = np.concatenate([request.ids, ahead])
            yield replace(request, slot=number % self.slots, ahead=ahead)


def _shared_ring(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory that this process and its workers share. It is reserved now, because a worker dies with a bus error if
    shared memory runs out at a write. Other processes of the node reserve theirs too, so that the sum is checked.
    """
    bytes_ = int(np.prod(shape)) * dtype.itemsize
    if sys.platform == "linux" and bytes_ > shutil.disk_usage(SHARED).free:
        raise _too_little_shared_memory(bytes_)
    ring = torch.empty(shape, dtype=dtype).share_memory_()
    if sys.platform == "linux" and torch.multiprocessing.get_sharing_strategy() == "file_descriptor":
        descriptor, size = ring.untyped_storage()._share_fd_cpu_()[:2]  # belongs to the storage: we must not close it
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise _too_little_shared_memory(bytes_) from None
    return ring


def _too_little_shared_memory(bytes_: int) -> ValueError:
    """The error, with the numbers of the whole node."""
    space, processes = shutil.disk_usage(SHARED), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    mib = lambda count: f"{count / (1 << 20):,.1f} MiB"  # noqa: E731
    together = f" in each of {processes} processes, {mib(bytes_ * processes)} together" if processes > 1 else ""
    return ValueError(
        f"the workers' batches need {mib(bytes_)} of shared memory{together}, and {SHARED} has {mib(space.free)} free"
        f" of {mib(space.total)}; lower --num-workers or the batch size, or enlarge it (docker run --shm-size=8g)"
    )


@contextlib.contextmanager
def explained_death() -> Iterator[None]:
    """Raises WorkerDied in place of torch's RuntimeError when a data worker was killed."""
    try:
        yield
    except RuntimeError as error:
        death = _DIED.search(f"{error.__cause__ or error.__context__} {error}")  # only the cause names the signal
        if not death:
            raise
        how = f"was ended by the signal {death.group(2).strip()}" if death.group(2) else "ended unexpectedly"
        if "Bus error" in how:
            most_likely = f"shared memory ({SHARED}) is full: enlarge it (docker run --shm-size=8g)"
        else:
            most_likely = "the machine ran out of memory: look for 'Out of memory' in its log (dmesg)"
        raise WorkerDied(
            f"a data worker {how}; most likely {most_likely}, or lower --num-workers (0 prepares the batches in the"
            " main process)"
        ) from None


def _settle(worker: int) -> None:
    """Gives OpenCV one thread in a worker, as torch already has. Transforms may use OpenCV."""
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

import errno
import gc
import os
import shutil
import signal
from collections import namedtuple

import numpy as np
import pytest
import torch
from batch_streams import digest, stream

from a2mim.data import EvalLoader, StreamLoader, TrainLoader, open_stream, workers
from a2mim.data.records import Request


@pytest.mark.parametrize("start_method", workers.START_METHODS)
def test_every_start_method_gives_the_same_stream(dataset, start_method):
    number = 2 if start_method == "fork" else 1  # the others import torch anew
    train = TrainLoader(dataset, 16, 8, num_workers=number, start_method=start_method)
    assert stream(train, epochs=2) == stream(TrainLoader(dataset, 16, 8), epochs=2)


def test_a_batch_belongs_to_whoever_took_it(dataset):
    """All batches are kept while the ring goes round several times; a slot handed out itself would change."""
    train = TrainLoader(dataset, 16, 4, num_workers=1, prefetch=1)
    kept = list(train)
    assert len(kept) == 10
    assert [digest(batch) for batch in kept] == stream(TrainLoader(dataset, 16, 4), epochs=1)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_abandoned_pass_leaves_nothing_in_the_next(dataset, num_workers):
    """Requests that were under way must not be written into slots of the next pass."""
    train, reference = TrainLoader(dataset, 16, 4, num_workers=num_workers, prefetch=4), TrainLoader(dataset, 16, 4)
    for position in (0, 13, 2, 7):
        train.seek(position), reference.seek(position)
        for _, ours, theirs in zip(range(2), train, reference, strict=False):
            assert digest(ours) == digest(theirs)


def test_the_last_smaller_batch_of_an_evaluation_comes_out_of_the_ring_whole(dataset):
    options = dict(img_size=16, resize=16, batch_size=12)
    test = EvalLoader(dataset, **options, num_workers=2)
    for _ in range(2):
        assert stream(test, epochs=1) == stream(EvalLoader(dataset, **options), epochs=1)


def test_what_a_worker_will_be_asked_for_next_is_announced_to_it():
    requests = workers._Requests(workers=2, slots=5)
    requests.items = [Request(0, np.array([10 * k, 10 * k + 1])) for k in range(6)]
    sent = list(requests)
    assert [request.ids[0] // 10 for request in sent] == list(range(6))
    assert [request.slot for request in sent] == [0, 1, 2, 3, 4, 0]
    ahead = [sorted({i // 10 for i in request.ahead}) for request in sent]
    assert ahead == [[0, 2], [1, 3], [4], [5], [], []]  # the first ones nobody has announced


def test_too_little_shared_memory_is_refused_before_it_is_touched(dataset, monkeypatch):
    """Three slots of 8 images of 3 x 512 x 512: 18 MiB."""
    usage = namedtuple("usage", "total used free")(64 << 20, 54 << 20, 10 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"need 18.0 MiB of shared memory, and /dev/shm has 10.0 MiB free of 64.0 MiB"):
        TrainLoader(dataset, 512, 8, num_workers=1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"18.0 MiB of shared memory in each of 4 processes, 72.0 MiB together"):
        TrainLoader(dataset, 512, 8, num_workers=1)


def test_shared_memory_is_taken_at_the_start_so_that_a_second_process_sees_what_is_left(dataset, monkeypatch):
    """The pages of the ring exist before a worker writes; where they cannot be had, the sentence comes at once."""
    before = shutil.disk_usage(workers.SHARED).used
    train = TrainLoader(dataset, 512, 8, num_workers=1)
    assert shutil.disk_usage(workers.SHARED).used - before >= 18 << 20
    del train

    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ValueError, match=r"the workers' batches need 18.0 MiB of shared memory"):
        TrainLoader(dataset, 512, 8, num_workers=1)


@pytest.mark.parametrize("make", [TrainLoader, EvalLoader, StreamLoader])
def test_a_killed_worker_is_one_sentence(dataset, make):
    """As the kernel kills when memory runs out."""

    class Fatal:
        def __init__(self, store):
            self.store, self.parent = store, os.getpid()

        def content(self, i):
            if os.getpid() != self.parent:
                os.kill(os.getpid(), signal.SIGKILL)
            return self.store.content(i)

        def name(self, i):
            return str(i)

    if make is StreamLoader:
        killing = open_stream(KillsWorkers(), 16)
        loader = make(killing, 16, 8, num_workers=1)
    else:
        dataset.store = Fatal(dataset.store)
        loader = make(dataset, 16, 8, num_workers=1) if make is TrainLoader else make(dataset, 16, 20, num_workers=1)
    with pytest.raises(workers.WorkerDied, match=r"signal Killed; most likely .*memory.*lower --num-workers \(0 prep"):
        list(loader)


class KillsWorkers:
    """A pipeline that can be read in this process only."""

    def __init__(self):
        self.parent = os.getpid()

    def __iter__(self):
        for number in range(16):
            if os.getpid() != self.parent:
                os.kill(os.getpid(), signal.SIGKILL)
            yield np.full((20, 20, 3), number, np.uint8)


def test_workers_have_one_thread_each(dataset):
    class Threads:
        draws, replaces, size, seed = 0, True, (1, 1), 0

        def __call__(self, pixels, u):
            return np.full((3, 1, 1), torch.get_num_threads(), np.uint8)

    loader, before = TrainLoader(dataset, 16, 8), torch.get_num_threads()
    loader._workers = workers.Workers(workers.Batches(dataset, Threads()), 8, num_workers=1, start_method="fork")
    torch.set_num_threads(2)
    try:
        assert {int(batch["images"].max()) for batch in loader} == {1}
    finally:
        torch.set_num_threads(before)


def test_a_dropped_loader_takes_its_workers_with_it(dataset):
    import multiprocessing

    train = TrainLoader(dataset, 16, 8, num_workers=2)
    next(iter(train))
    ours = set(multiprocessing.active_children())
    assert len(ours) >= 2
    del train
    gc.collect()
    for process in ours:
        process.join(10)
    assert not any(process.is_alive() for process in ours)


def test_wrong_arguments_are_one_sentence(dataset):
    for options, message in (
        (dict(num_workers=-1), "num_workers=-1 must be at least 0"),
        (dict(num_workers=1, prefetch=0), "prefetch=0 must be at least 1"),
        (dict(start_method="thread"), "start_method='thread' is unknown; choose one of fork"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainLoader(dataset, 16, 8, **options)


def test_every_image_is_announced_to_the_store_a_batch_before_it_is_read(dataset):
    class Watching:
        def __init__(self, store):
            self.store, self.events = store, []

        def will_need(self, ids):
            self.events.append(("announced", set(ids.tolist())))

        def content(self, i):
            self.events.append(("read", i))
            return self.store.content(i)

    dataset.store = Watching(dataset.store)
    batches = [set(batch["ids"].tolist()) for batch in TrainLoader(dataset, 16, 8)]
    announced, read = set(), []
    for kind, what in dataset.store.events:
        if kind == "announced":
            announced |= what
        else:
            assert what in announced
            read.append(what)
            ahead = batches[(len(read) - 1) // 8 + 1] if len(read) <= 32 else set()
            assert ahead <= announced
    assert sorted(read) == list(range(40))

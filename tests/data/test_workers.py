import gc
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from test_loader import digest, stream

from a2mim.data import EvalLoader, TrainLoader, workers


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
    requests.items = [(0, np.array([10 * k, 10 * k + 1])) for k in range(6)]
    sent = list(requests)
    assert [ids[0] // 10 for _, ids, _, _ in sent] == list(range(6))
    assert [slot for _, _, slot, _ in sent] == [0, 1, 2, 3, 4, 0]
    ahead = [sorted({i // 10 for i in ids}) for *_, ids in sent]
    assert ahead == [[0, 2], [1, 3], [4], [5], [], []]  # the first ones nobody has announced


def test_too_little_shared_memory_is_refused_before_it_is_touched(dataset, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(64, 0, 1 << 10))
    with pytest.raises(ValueError, match=r"shared memory and /dev/shm has 0 MiB free; lower num_workers"):
        TrainLoader(dataset, 16, 8, num_workers=1)


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

"""What is at fault stays what it is: a shard that breaks during training is not many unreadable images."""

import contextlib
import gc
import itertools
import os
import weakref

import pytest
import torch
from loopback import LoopbackServer, quick

from a2mim.data import EvalLoader, TrainLoader, open_dataset
from a2mim.data.errors import ShardError
from a2mim.data.faults import UnreadableData


def fresh(dataset):
    """As a worker finds it: no file open."""
    dataset.store.close()
    return dataset


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda path: path.unlink(), r"part-1\.tar: No such file"),
        (lambda path: os.truncate(path, 7000), r"part-1\.tar: changed since it was indexed, from \d+ to 7000 bytes"),
    ],
)
def test_a_shard_that_breaks_after_the_start_ends_the_run_as_a_shard(shards, tmp_path, num_workers, harm, message):
    dataset = fresh(open_dataset(shards))
    harm(tmp_path / "part-1.tar")
    for loader in (TrainLoader(dataset, 16, 8, num_workers=num_workers), EvalLoader(dataset, 16, resize=20)):
        with pytest.raises(ShardError, match=f"^/[^\n]*{message}"):  # one sentence, no traceback of a worker
            list(loader)
        assert not loader.faults


def test_a_shard_cut_while_it_is_open_is_a_shards_fault(shards, tmp_path):
    dataset = open_dataset(shards)
    dataset.read(20)
    os.truncate(tmp_path / "part-1.tar", 7000)
    with pytest.raises(ShardError, match=r"part-1\.tar: changed since it was indexed, from \d+ to \d+ bytes"):
        dataset.read(20)


def test_by_choice_the_images_of_a_lost_shard_are_replaced_and_counted(shards, tmp_path):
    access = quick(tmp_path / "cache", skip_bad_shards=True)
    dataset = fresh(open_dataset(str(tmp_path / "part-{0..3}.tar"), access=access))
    (tmp_path / "part-3.tar").unlink()
    train = TrainLoader(dataset, 16, 8)
    shown = torch.cat([batch["ids"] for batch in train])
    assert len(shown) == 40 and shown.max() < 32
    assert train.faults["shard lost"] >= 8 and "part-3.tar/000" in train.faults.names[0]


def test_a_lost_shard_that_is_too_much_ends_the_run(shards, tmp_path):
    access = quick(tmp_path / "cache", skip_bad_shards=True)
    dataset = fresh(open_dataset(str(tmp_path / "part-{0..3}.tar"), access=access))
    for k in (0, 1, 2):
        (tmp_path / f"part-{k}.tar").unlink()
    with pytest.raises(UnreadableData, match=r"cannot be read.*shard lost"):
        list(TrainLoader(dataset, 16, 8))


def test_a_server_that_fails_during_training_ends_the_run_with_its_answer(shards, tmp_path):
    open_dataset(shards)  # indices beside the shards, so that nothing is fetched at the start
    server = LoopbackServer(tmp_path)
    dataset = open_dataset(server.url + "/part-{0..3}.tar", access=quick(tmp_path / "cache"))
    server.only = {f"/part-{k}.tar": 503 for k in (1, 2, 3)}
    train = TrainLoader(dataset, 16, 8, num_workers=1)
    with pytest.raises(
        ShardError, match=r"^http[^\n]*part-\d\.tar: the server answered 503 Service Unavailable, after"
    ):
        list(train)
    server.only.clear()
    assert len(torch.cat([batch["ids"] for batch in TrainLoader(dataset, 16, 8, num_workers=1)])) == 40
    server.close()


@pytest.mark.parametrize("stop", [None, 2])
def test_a_loader_that_is_dropped_is_gone_at_once_also_after_an_error(shards, tmp_path, stop):
    """In a cycle its workers would end in no good order: five seconds each, at some later time."""
    dataset = fresh(open_dataset(shards))
    if stop is None:
        (tmp_path / "part-1.tar").unlink()
    gc.disable()
    try:
        loader = TrainLoader(dataset, 16, 8)
        gone = weakref.ref(loader._workers)
        with contextlib.suppress(ShardError):
            list(itertools.islice(loader, stop))
        del loader
        assert gone() is None
    finally:
        gc.enable()

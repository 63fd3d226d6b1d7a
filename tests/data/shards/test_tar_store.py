import errno
import os
import resource
from dataclasses import replace

import numpy as np
import pytest

from a2mim.data import TrainLoader, open_dataset
from a2mim.data.errors import MachineError
from a2mim.data.shards import index_file, tar_store


@pytest.fixture
def few_files():
    """At most 64 open files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_store_keeps_a_small_share_of_the_open_files_that_a_process_may_have(few_files):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 1 <= tar_store._most_open() == limit // 8


def test_a_store_closes_its_own_files_when_no_more_may_be_opened(shards, few_files, monkeypatch):
    """As when other libraries have taken the rest."""
    dataset, monkey = open_dataset(shards), []
    monkeypatch.setattr(tar_store, "_most_open", lambda: 128)
    for i in (0, 15):
        dataset.read(i)
    try:
        while True:
            monkey.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.EMFILE
    try:
        assert dataset.read(35).shape[2] == 3 and len(dataset.store._open) == 1
    finally:
        for descriptor in monkey:
            os.close(descriptor)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_are_the_machines_fault_and_no_image_is_left_out(shards, skip, number, access, monkeypatch):
    dataset = open_dataset(shards, access=replace(access, skip_bad_shards=skip))

    def refuse(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tar_store, "_opened", refuse)
    with pytest.raises(MachineError, match=r"part-\d.tar: too many open files .*ulimit -n 4096"):
        list(TrainLoader(dataset, 16, 8))


def test_an_index_that_cannot_be_read_for_too_many_open_files_skips_no_shard(shards, access, monkeypatch):
    def refuse(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(index_file, "scan", refuse)
    with pytest.raises(MachineError, match="too many open files"):
        open_dataset(shards, access=replace(access, skip_bad_shards=True))


def test_samples_are_read_at_their_places(shards):
    dataset = open_dataset(shards)
    order = np.random.default_rng(0).permutation(40)
    contents = {i: dataset.store.content(int(i)) for i in order}
    assert len(set(contents.values())) == 40

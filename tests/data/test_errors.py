import errno
import os
from dataclasses import replace

import pytest
from loopback import LoopbackServer

from a2mim.data import open_dataset
from a2mim.data.errors import MachineError, refuse_machine_faults


@pytest.mark.parametrize(
    ("number", "remedy"),
    [("EMFILE", "ulimit -n"), ("ENFILE", "ulimit -n"), ("ENOSPC", "free some"), ("ENOMEM", "lower --num-workers")],
)
def test_what_the_machine_lacks_is_one_sentence_with_the_remedy(number, remedy):
    code = getattr(errno, number)
    with pytest.raises(MachineError, match=remedy) as error:
        refuse_machine_faults(OSError(code, os.strerror(code)), "x.tar")
    assert str(error.value).startswith("x.tar: ")
    refuse_machine_faults(OSError(errno.EIO, "a damaged disk is not the machine's fault alone"), "x.tar")


def test_a_cache_that_cannot_be_made_skips_no_shard(shards, tmp_path, access):
    """As where HOME is missing; /proc takes no folder, not even from root."""
    server = LoopbackServer(tmp_path)
    away = replace(access, cache_dir="/proc/cache", skip_bad_shards=True)
    try:
        with pytest.raises(MachineError, match=r"the cache cannot be kept there .*--shard-cache DIR"):
            open_dataset(server.url + "/part-{0..3}.tar", access=away)
    finally:
        server.close()


def test_a_full_disk_skips_no_shard_and_leaves_no_part(shards, tmp_path, access, monkeypatch):
    server = LoopbackServer(tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("a2mim.data.shards.cache._transfer", full)
    try:
        with pytest.raises(MachineError, match="no room is left on the disk"):
            open_dataset(server.url + "/part-{0..3}.tar", access=replace(access, skip_bad_shards=True))
    finally:
        server.close()
    assert not list(access.folder.rglob("*.part"))

import time
from dataclasses import replace

import fsspec
import numpy as np
import pytest
from loopback import LoopbackServer, quick

from a2mim.data import open_dataset
from a2mim.data.errors import ShardError
from a2mim.data.remote.object_stores import StoredObject, within
from a2mim.data.remote.origins import origin_of


@pytest.fixture
def access(tmp_path):
    return quick(tmp_path / "cache")


@pytest.fixture
def bucket(shards, tmp_path):
    """The four shards in fsspec's memory."""
    files = fsspec.filesystem("memory")
    for k in range(4):
        files.pipe(f"/bucket/part-{k}.tar", (tmp_path / f"part-{k}.tar").read_bytes())
    yield files
    files.rm("/bucket", recursive=True)


def test_shards_of_an_object_store_are_the_local_ones(bucket, shards, access):
    local = open_dataset(shards)
    for pattern in ("memory://bucket/part-{0..3}.tar", "memory://bucket/part-*.tar"):
        away = open_dataset(pattern, access=access)
        assert away.fingerprint == local.fingerprint and np.array_equal(away.read(25), local.read(25))
    assert sorted(path.name for path in (access.folder / "shards").rglob("*.tar")) == [
        f"part-{k}.tar" for k in range(4)
    ]


def test_single_images_are_read_by_ranges(bucket, shards, tmp_path):
    access, local = quick(tmp_path / "cache", remote="ranges"), open_dataset(shards)
    away = open_dataset("memory://bucket/part-{0..3}.tar", access=access)
    away.will_need(np.arange(40))
    assert all(np.array_equal(away.read(i), local.read(i)) for i in range(40))


def test_an_object_that_changed_is_fetched_anew(bucket, access, tmp_path):
    address = "memory://bucket/part-0.tar"
    assert len(open_dataset(address, access=access)) == 12
    time.sleep(0.01)
    bucket.pipe("/bucket/part-0.tar", (tmp_path / "part-1.tar").read_bytes())
    assert len(open_dataset(address, access=access)) == 9


def test_missing_objects_are_all_named(bucket, access):
    with pytest.raises(
        FileNotFoundError, match=r"2 of 6 shards missing: memory://bucket/part-4\.tar, memory://bucket/p"
    ):
        open_dataset("memory://bucket/part-{0..5}.tar", access=access)
    with pytest.raises(FileNotFoundError, match=r"nothing matches 'memory://bucket/none-\*\.tar'"):
        open_dataset("memory://bucket/none-*.tar", access=access)


def test_a_cut_object_is_found(bucket, access):
    bucket.pipe("/bucket/part-2.tar", bucket.cat("/bucket/part-2.tar")[:7000])
    with pytest.raises(ShardError, match=r"memory://bucket/part-2\.tar: byte \d+: cut short"):
        open_dataset("memory://bucket/part-{0..3}.tar", access=access)


def test_fsspecs_own_web_file_system_downloads_and_reads_ranges(shards, tmp_path, access):
    pytest.importorskip("aiohttp")
    server, content = LoopbackServer(tmp_path), (tmp_path / "part-1.tar").read_bytes()
    access = quick(tmp_path / "cache", timeout=5)
    found = StoredObject(f"{server.url}/part-1.tar", access)
    with open(tmp_path / "copy", "wb+") as file:
        file.write(content[:1000])  # what came before the transfer broke
        found.download(file)
    assert (tmp_path / "copy").read_bytes() == content and found.read(700, 90) == content[700:790]
    assert found.stat().size == len(content)
    with pytest.raises(FileNotFoundError, match=r"none\.tar: there is no such object"):
        StoredObject(f"{server.url}/none.tar", access).stat()
    server.close()


@pytest.mark.parametrize(
    "address, message",
    [
        ("s3://bucket/a.tar", r"s3://bucket/a\.tar: reading s3:// needs one more package: pip install s3fs$"),
        ("gs://bucket/a.tar", "pip install gcsfs$"),
        ("az://bucket/a.tar", "pip install adlfs$"),
        ("sftp://host/a.tar", "pip install paramiko$"),
        ("s4://bucket/a.tar", "s4:// is not known; give a path"),
        ("memory://a.tar::zip", "more than once|not taken|missing"),
    ],
)
def test_a_missing_package_is_named(address, message, access, monkeypatch):
    for package in ("s3fs", "gcsfs", "adlfs", "paramiko"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_dataset(address, access=access)


def test_a_store_that_does_not_answer_is_left(bucket, access, monkeypatch):
    found = origin_of("memory://bucket/part-0.tar", access)
    monkeypatch.setattr(type(found.files), "info", lambda *_, **__: time.sleep(2))
    began = time.monotonic()
    with pytest.raises(ShardError, match=r"part-0\.tar: no answer in time, after 3 attempts"):
        open_dataset("memory://bucket/part-0.tar", access=access)
    assert time.monotonic() - began < 1.5


def test_an_answer_in_time_is_the_answer():
    assert within(1, lambda: 5) == 5
    with pytest.raises(KeyError):
        within(1, lambda: {}["none"])


class LockedSystem(fsspec.get_filesystem_class("memory")):
    """Opens for whoever gives the token."""

    protocol = "locked"
    cachable = False

    def __init__(self, token: str | None = None, **options):
        super().__init__(**options)
        if token != "sesame":
            raise ValueError("no token was given")

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("locked://").lstrip("/")


def test_storage_options_reach_the_file_system_and_are_not_shown(bucket, access):
    """repr is what a traceback or a log would print of them."""
    fsspec.register_implementation("locked", LockedSystem, clobber=True)
    with pytest.raises(ValueError, match="no token was given"):
        open_dataset("locked://bucket/part-{0..3}.tar", access=access)
    opened = replace(access, storage_options={"token": "sesame"})
    assert len(open_dataset("locked://bucket/part-{0..3}.tar", access=opened)) == 40
    assert "sesame" not in repr(opened)

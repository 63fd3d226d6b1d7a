"""Files appear whole or not at all."""

import errno
import json
import os
import time

import pytest

from a2mim import files
from a2mim.files import (
    PARTIAL,
    STAGING,
    DiskFull,
    appending,
    delete_partials,
    delete_staging,
    make_own_folder,
    open_lock,
    partial_path,
    read_json,
    replacing,
    reserve,
    telling_full_disk,
    write_json,
    write_text,
)


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as file:
        file.write("half of the n")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with replacing(tmp_path / "a.txt") as file:
        file.write("new")
        file.flush()
        assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_planted_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.json").symlink_to(tmp_path / "victim")
    write_json(tmp_path / "a.json", {"ä": 1})
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "a.json").is_symlink()
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": 1}


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "usual").touch()
    with partial_path(tmp_path / "a") as partial:
        partial.write_bytes(b"1")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_a_killed_writer_left_is_deleted(tmp_path):
    writer = partial_path(tmp_path / "a")
    writer.__enter__()
    write_text(tmp_path / "b", "kept")
    assert len(list(tmp_path.iterdir())) == 2
    delete_partials(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_old_partials_are_deleted_and_those_under_way_stay(tmp_path):
    for name, age in (("a.npz", 7200), ("b.npz", 7200), ("a.npz", 0)):
        path = tmp_path / f".{name}.{age}x{PARTIAL}"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    delete_partials(tmp_path, older_than=3600, name="a.npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.npz.0x.partial", ".b.npz.7200x.partial"]


def test_a_lock_is_held_until_its_file_is_closed(tmp_path):
    with open_lock(tmp_path / ".lock"), pytest.raises(BlockingIOError):
        open_lock(tmp_path / ".lock", wait=False)
    open_lock(tmp_path / ".lock", wait=False).close()


@pytest.mark.parametrize("number", ["ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", None])
def test_without_locks_the_work_goes_on_with_a_warning(number, tmp_path, monkeypatch):
    """As on file systems without flock, and on Windows (None), where the module fcntl does not exist."""

    def refuse(file, how):
        raise OSError(getattr(errno, number), "No locks available")

    if number is None:
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="no locks here"):
        open_lock(tmp_path / ".lock").close()


def test_other_errors_of_locking_are_raised(tmp_path, monkeypatch):
    def fail(file, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        open_lock(tmp_path / ".lock")


def test_a_link_in_place_of_a_lock_file_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="a link is in the place of the lock file"):
        open_lock(tmp_path / ".lock")
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("supported", [True, False])
def test_reserved_bytes_are_on_disk_and_the_content_stays(tmp_path, monkeypatch, supported):
    if not supported:

        def refuse(*_):
            raise OSError(errno.EOPNOTSUPP, "not here")

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    path = tmp_path / "a"
    with path.open("w+b") as file:
        file.write(b"begin")
        file.truncate(3_000_000)
        reserve(file, 3_000_000)
    assert path.stat().st_size == 3_000_000 and path.stat().st_blocks * 512 >= 3_000_000
    assert path.read_bytes() == b"begin" + bytes(2_999_995)


def test_a_full_disk_is_one_sentence_and_other_errors_stay_as_they_are():
    with pytest.raises(DiskFull) as caught, telling_full_disk("b.npz", "make room"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == "b.npz cannot be written, the disk is full: make room"
    with pytest.raises(PermissionError), telling_full_disk("b.npz", "make room"):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(RuntimeError), telling_full_disk("b.npz", "make room"):
        raise RuntimeError("another")


def _as_torch_does():
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  the system's error is its context


def _as_rust_does():
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("write", [_as_torch_does, _as_rust_does])
def test_a_full_disk_behind_a_library_s_own_error_is_seen(write):
    with pytest.raises(DiskFull, match="the disk is full: make room"):  # noqa: SIM117
        with telling_full_disk("b.npz", "make room"):
            write()


@pytest.mark.parametrize("unfinished", [None, ".b.json.x.partial"])
def test_a_full_disk_names_the_file_that_was_to_be_written(tmp_path, unfinished):
    with pytest.raises(OSError) as caught, replacing(tmp_path / "b.json"):
        raise OSError(errno.ENOSPC, "No space left on device", unfinished)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "b.json")
    assert not list(tmp_path.iterdir())


def test_a_lock_may_be_shared(tmp_path):
    path = tmp_path / ".lock"
    with open_lock(path, shared=True), open_lock(path, shared=True, wait=False), pytest.raises(BlockingIOError):
        open_lock(path, wait=False)
    with open_lock(path), pytest.raises(BlockingIOError):
        open_lock(path, shared=True, wait=False)


def test_lines_are_added_and_a_link_is_not_followed(tmp_path):
    for word in ("a", "é"):
        with appending(tmp_path / "log") as file:
            file.write(f"{word}\n")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "a\né\n"
    (tmp_path / "link").symlink_to(tmp_path / "log")
    with pytest.raises(OSError, match="a link is in the place"):
        appending(tmp_path / "link")


def test_folders_that_are_links_are_refused_and_those_above_are_not(tmp_path):
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "above").symlink_to(tmp_path / "real")
    make_own_folder(tmp_path / "above" / "new")
    (tmp_path / "real" / "new" / "linked").symlink_to(tmp_path)
    for place in (tmp_path / "above", tmp_path / "real" / "new"):
        with pytest.raises(ValueError, match="is a link to another place"):
            make_own_folder(place)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff", b"9" * 5000, b""])
def test_what_is_no_json_is_one_sentence_that_names_the_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json cannot be read"):
        read_json(tmp_path / "a.json")


def test_pipes_and_endless_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with (tmp_path / "sparse.json").open("wb") as file:
        file.truncate(1 << 40)
    for name, why in (("pipe.json", "no regular file"), ("sparse.json", "1,099,511,627,776 bytes")):
        with pytest.raises(ValueError, match=why):
            read_json(tmp_path / name)


def test_folders_that_a_killed_export_left_go(tmp_path):
    (tmp_path / f"{STAGING}a" / "inner").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / f"{STAGING}link").symlink_to(tmp_path / "kept")
    delete_staging(tmp_path, older_than=60)
    assert (tmp_path / f"{STAGING}a").is_dir()
    delete_staging(tmp_path)
    assert not (tmp_path / f"{STAGING}a").exists() and (tmp_path / "kept").is_dir()

"""An index file is used only when all of it is right: damage is noticed, said and mended."""

import os
import time
import warnings

import numpy as np
import pytest
from small_images import encoded, picture, write_tar

from a2mim.data import open_dataset
from a2mim.data.errors import ShardError
from a2mim.data.shards import index_file
from a2mim.data.shards.index_file import load, load_keys, local_paths, local_stamp, read_index, store


def test_the_index_is_cached_and_rebuilt_when_the_shard_changes(shards, tmp_path, monkeypatch):
    path = str(tmp_path / "part-0.tar")
    first = read_index(path)
    assert os.path.exists(path + ".index.npz")
    with monkeypatch.context() as patch:
        patch.setattr(index_file, "scan", lambda path: pytest.fail("the headers were read again"))
        assert np.array_equal(read_index(path).samples, first.samples)
    write_tar(path, [("new.jpg", encoded(picture(9)))])
    assert len(read_index(path).samples) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not whole", None])
def test_a_damaged_cached_index_is_rebuilt(shards, tmp_path, damage):
    path = tmp_path / "part-0.tar"
    first, cached = read_index(str(path)), tmp_path / "part-0.tar.index.npz"
    cached.write_bytes(cached.read_bytes()[:-40] if damage is None else damage)
    with pytest.warns(UserWarning, match="this index is damaged and is made anew"):
        again = read_index(str(path))
    assert np.array_equal(again.samples, first.samples)


def test_a_read_only_folder_is_indexed_in_the_users_cache(shards, tmp_path, monkeypatch):
    path = str(tmp_path / "part-0.tar")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = index_file.replacing

    def refuse_beside(place, mode):
        if place.parent == tmp_path:
            raise PermissionError("read-only")
        return real(place, mode)

    monkeypatch.setattr(index_file, "replacing", refuse_beside)
    first = read_index(path)
    assert len(list((tmp_path / "cache" / "a2mim" / "indices").glob("*.npz"))) == 1
    monkeypatch.setattr(index_file, "scan", lambda path: pytest.fail("the headers were read again"))
    assert np.array_equal(read_index(path).samples, first.samples)


def loaded(path, access):
    """Everything that an index file gives, as bytes; None where it is refused."""
    places, stamp = local_paths(str(path), access), local_stamp(str(path))
    index, keys = load(places, stamp), load_keys(places, stamp)
    if index is None or keys is None:
        return None
    counts = index.duplicates, index.incomplete, index.captions, index.unchecked, index.odd_labels, index.lost
    return index.samples.tobytes(), index.texts, keys, counts


@pytest.fixture
def named(tmp_path):
    """A shard whose samples have class names, texts and folders."""
    members = []
    for k in range(12):
        members += [(f"f{k % 2}/{k}.jpg", encoded(picture(k))), (f"f{k % 2}/{k}.cls", f"class {k % 3}".encode())]
        members.append((f"f{k % 2}/{k}.txt", f"text {k}".encode()))
    write_tar(tmp_path / "x.tar", members)
    return tmp_path / "x.tar"


def test_no_flipped_bit_of_an_index_file_changes_what_is_read(named, access):
    """It is refused with a word, or tells the same as before."""
    read_index(str(named), access)
    right, place = loaded(named, access), named.with_name("x.tar.index.npz")
    whole, refused = bytearray(place.read_bytes()), 0
    for bit in np.random.default_rng(0).choice(8 * len(whole), 3000, replace=False).tolist():
        whole[bit // 8] ^= 1 << bit % 8
        place.write_bytes(whole)
        whole[bit // 8] ^= 1 << bit % 8
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = loaded(named, access)
        if found is None:
            refused += 1
            assert any("this index is damaged" in str(warning.message) for warning in said)
        else:
            assert found == right
    assert refused > 1500  # the others lie where zip keeps dates and the like


@pytest.mark.parametrize("column", ["offset", "size", "name", "text", "folder"])
@pytest.mark.parametrize("value", [-2, 10**9, 2**31 - 1])
def test_places_and_numbers_that_no_shard_has_are_refused_also_with_a_right_checksum(named, access, column, value):
    index = read_index(str(named), access)
    index.samples, index.keys = index.samples.copy(), [str(k) for k in range(12)]
    index.samples[column][3] = value
    store(index, local_paths(str(named), access), local_stamp(str(named)))
    with pytest.warns(UserWarning, match="this index is damaged and is made anew"):
        assert loaded(named, access) is None


def test_a_packed_index_is_refused_before_it_is_unpacked(named, access):
    """A few kilobytes may unpack to gigabytes."""
    read_index(str(named), access)
    place = named.with_name("x.tar.index.npz")
    with np.load(place) as stored:
        np.savez_compressed(place, **{name: stored[name] for name in stored.files})
    with pytest.warns(UserWarning, match="compressed"):
        assert loaded(named, access) is None


def test_an_index_larger_than_its_shard_is_refused_unread(named, access):
    read_index(str(named), access)
    place = named.with_name("x.tar.index.npz")
    os.truncate(place, 1 << 40)
    with pytest.warns(UserWarning, match="at most"):
        assert loaded(named, access) is None


def test_a_pipe_in_place_of_an_index_is_not_waited_for(named, access):
    os.mkfifo(named.with_name("x.tar.index.npz"))
    began = time.monotonic()
    with pytest.warns(UserWarning, match="it is no regular file"):
        read_index(str(named), access)
    assert time.monotonic() - began < 5 and loaded(named, access) is not None


def test_a_shard_of_the_same_size_and_time_is_indexed_anew(named, access):
    """As when a set is made again by a program that fixes the times of its files."""
    first, before = read_index(str(named), access), named.stat()
    other = named.with_name("other.tar")
    other.write_bytes(named.read_bytes().replace(b"class 1", b"class 7"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, named)
    assert (named.stat().st_size, named.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert "class 1" in first.texts and "class 7" in read_index(str(named), access).texts


@pytest.mark.parametrize("opened", [False, True])
def test_a_shard_that_is_replaced_within_a_run_is_noticed(named, access, opened):
    """Before it is opened for the first time, or written to in its place while it is open."""
    dataset, content = open_dataset(str(named), access=access), named.read_bytes()
    dataset.read(0)
    if opened:
        time.sleep(0.01)
        with named.open("r+b") as file:
            file.write(content)
    else:
        dataset.store.close()
        named.with_name("y.tar").write_bytes(content)
        os.replace(named.with_name("y.tar"), named)
    with pytest.raises(ShardError, match="changed since it was indexed, without a change of its size"):
        dataset.read(0)


def test_what_a_killed_index_build_left_is_removed_and_what_is_under_way_stays(named, access):
    old, new = (named.with_name(f".x.tar.index.npz.{name}.partial") for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * index_file._SLOWEST,) * 2)
    read_index(str(named), access)
    assert not old.exists() and new.exists()

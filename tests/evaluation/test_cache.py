"""The cache of features: made once, shared by parts, resumed after a kill, bounded, and never stale."""

import errno
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from a2mim.evaluation.cache import Cache
from a2mim.evaluation.feature_set import FeatureSet
from a2mim.files import DiskFull

N, BATCH = 23, 4


class Loader:
    """Batches of a set of small images from a row on; can be told to die, and to leave rows out as unreadable."""

    def __init__(self, start, dies_at=None, unreadable=(), log=None):
        self.start, self.dies_at, self.left_out, self.faults = start, dies_at, set(unreadable), Counter()
        if log is not None:
            log.append(start)

    def __iter__(self):
        for rows in torch.arange(self.start, N).split(BATCH):
            if self.dies_at is not None and rows[0] >= self.dies_at:
                raise KeyboardInterrupt
            kept = torch.tensor([row for row in rows.tolist() if row not in self.left_out], dtype=torch.int64)
            self.faults["damaged"] += len(rows) - len(kept)
            if len(kept):
                yield {"images": images_of(kept), "ids": kept}


def images_of(rows):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (N, 3, 8, 8), dtype=torch.uint8, generator=generator)[rows]


def extract(parts):
    widths = {"default": 3, "avg": 3, "cls": 5}
    return lambda images: {p: images.float().mean(dim=(2, 3)).repeat(1, 2)[:, : widths[p]] for p in parts}


@pytest.fixture(autouse=True)
def save_always(monkeypatch):
    monkeypatch.setattr("a2mim.evaluation.cache_entry._SAVE_EVERY", -1.0)


def take(cache, parts=("default",), identity="a", **loader):
    entry = cache.entry({"of": identity})
    entry.take(parts, N, extract, lambda start: Loader(start, **loader), "images")
    return FeatureSet(entry, np.arange(N) % 3)


def test_features_are_those_of_the_pass_and_are_not_made_again(tmp_path):
    log = []
    first = take(Cache(tmp_path), log=log)
    expected = extract(["default"])(images_of(torch.arange(N)))["default"]
    assert torch.equal(first.features("default"), expected) and torch.equal(first.labels, torch.arange(N) % 3)
    again = take(Cache(tmp_path), log=log)
    assert torch.equal(again.features("default"), expected) and log == [0]


def test_features_stay_on_disk_and_changing_them_in_memory_changes_no_file(tmp_path):
    found = take(Cache(tmp_path))
    assert isinstance(found.entry.part("default"), np.memmap)
    found.features("default").fill_(7)
    assert not (take(Cache(tmp_path)).features("default") == 7).any()


@pytest.mark.parametrize("dies_at", [4, 12, 20])
def test_a_killed_pass_goes_on_where_it_was(tmp_path, dies_at):
    log, unreadable = [], (1, 13, 22)
    with pytest.raises(KeyboardInterrupt):
        take(Cache(tmp_path), log=log, dies_at=dies_at, unreadable=unreadable)
    found = take(Cache(tmp_path), log=log, unreadable=unreadable)
    whole = take(Cache(None), unreadable=unreadable)
    assert 0 < log[1] <= dies_at
    assert torch.equal(found.features("default"), whole.features("default"))
    assert np.array_equal(found.rows, whole.rows) and found.entry.faults == {"damaged": 3}
    assert np.array_equal(found.signatures(), whole.signatures())


def test_another_part_takes_a_pass_of_its_own_and_leaves_the_others_alone(tmp_path):
    log = []
    first = take(Cache(tmp_path), log=log, unreadable=(2,))
    before = first.features("default").clone(), first.signatures()
    with pytest.raises(KeyboardInterrupt):
        take(Cache(tmp_path), ("default", "cls"), log=log, unreadable=(2,), dies_at=8)
    assert np.array_equal(take(Cache(tmp_path), log=[]).signatures(), before[1])
    both = take(Cache(tmp_path), ("default", "cls"), log=log, unreadable=(2,))
    assert log[:2] == [0, 0] and log[2] > 0
    assert torch.equal(both.features("default"), before[0]) and np.array_equal(both.signatures(), before[1])
    joined = both.features("cls", "default")
    assert joined.shape == (N - 1, 8) and torch.equal(joined[:, 5:], before[0])
    assert both.entry.faults == {"damaged": 1}


def test_faults_are_counted_once_whatever_was_killed_in_between(tmp_path):
    def killed(parts, dies_at):
        with pytest.raises(KeyboardInterrupt):
            take(Cache(tmp_path), parts, dies_at=dies_at, unreadable=(2, 10, 17))

    killed(("default",), 12)
    killed(("cls",), 8)
    killed(("default",), 20)
    found = take(Cache(tmp_path), ("cls",), unreadable=(2, 10, 17))
    assert found.entry.faults == {"damaged": 3}
    whole = take(Cache(None), ("cls",), unreadable=(2, 10, 17))
    assert torch.equal(found.features("cls"), whole.features("cls"))


def test_several_parts_share_one_pass(tmp_path):
    log = []
    take(Cache(tmp_path), ("default", "avg", "cls"), log=log)
    take(Cache(tmp_path), ("avg",), log=log)
    assert log == [0]


def test_another_identity_is_another_entry(tmp_path):
    log = []
    for identity in ("a", "b"):
        take(Cache(tmp_path), identity=identity, log=log)
    assert log == [0, 0] and len(list(tmp_path.iterdir())) == 2
    assert {json.loads((f / "identity.json").read_text())["of"] for f in tmp_path.iterdir()} == {"a", "b"}


def test_the_oldest_entries_go_when_the_bound_is_reached(tmp_path):
    first = take(Cache(tmp_path), identity="a")
    size = sum(path.stat().st_size for path in first.entry.folder.iterdir())
    del first
    bounded = Cache(tmp_path, most_bytes=2.5 * size)
    for identity in ("b", "c"):
        last = take(bounded, identity=identity)
    kept = {json.loads((f / "identity.json").read_text())["of"] for f in tmp_path.iterdir()}
    assert kept == {"b", "c"} and len(last.features("default")) == N


def test_what_is_larger_than_the_bound_is_refused_with_the_ways_on(tmp_path):
    needed = Cache(tmp_path).entry({}).missing_bytes({"default": 12}, N)
    with pytest.raises(ValueError, match=r"raise --feature-cache-gb to .* or give --no-feature-cache") as caught:
        Cache(tmp_path, most_bytes=needed - 1).check_room(needed)
    assert "\n" not in str(caught.value)
    Cache(tmp_path, most_bytes=needed).check_room(needed)
    Cache(None, most_bytes=1).check_room(needed)


def test_the_bytes_that_an_entry_will_have_are_known_before_the_first_image(tmp_path):
    entry = Cache(tmp_path).entry({"of": "a"})
    needed = entry.missing_bytes({"default": 12, "cls": 20}, N)
    found = take(Cache(tmp_path), ("default", "cls")).entry
    assert sum(path.stat().st_size for path in found.folder.glob("*.npy")) == needed - _other_bytes(entry.folder)
    assert found.missing_bytes({"default": 12, "cls": 20}, N) >= needed


def _other_bytes(folder):
    return (folder / "identity.json").stat().st_size


def test_an_entry_in_use_stays_and_goes_when_it_is_used_no_more(tmp_path):
    first = take(Cache(tmp_path), identity="a")
    tight = Cache(tmp_path, most_bytes=100)
    with pytest.warns(UserWarning, match="in use and stays"):
        second = take(tight, identity="b")
    assert len(first.features("default")) == N and len(second.features("default")) == N
    del first
    with pytest.warns(UserWarning, match="in use and stays"):
        take(tight, identity="c")
    kept = {json.loads((f / "identity.json").read_text())["of"] for f in tmp_path.iterdir()}
    assert kept == {"b", "c"}


def test_an_entry_in_use_by_another_process_stays(tmp_path):
    used = take(Cache(tmp_path), identity="a").entry.folder
    code = "import sys, a2mim.files as f\nwith f.open_lock(sys.argv[1], shared=True): print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(used / ".used")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.warns(UserWarning, match="in use and stays"):
            take(Cache(tmp_path, most_bytes=100), identity="b")
        assert used.is_dir()
        other.stdin.write(b"\n")


FILES = ("default.npy", "signature.npy", "shown.npy", "state.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 10, 0.3, 0.6, -1])
def test_a_flipped_byte_is_noticed_said_and_made_again(tmp_path, name, place):
    first = take(Cache(tmp_path), unreadable=(2,))
    expected, folder = first.features("default").clone(), first.entry.folder
    del first
    flip(folder / name, place)
    log = []
    with pytest.warns(UserWarning, match=f"{name} is damaged"):
        again = take(Cache(tmp_path), unreadable=(2,), log=log)
    assert log == [0] and torch.equal(again.features("default"), expected) and again.entry.faults == {"damaged": 1}


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 4
    path.write_bytes(content)


def test_a_flipped_byte_of_an_unfinished_pass_is_noticed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        take(Cache(tmp_path), dies_at=12)
    (path,) = tmp_path.glob("*/default.npy")
    flip(path, 130)
    with pytest.warns(UserWarning, match="default.npy is damaged"):
        found = take(Cache(tmp_path))
    assert torch.equal(found.features("default"), take(Cache(None)).features("default"))


def test_a_truncated_or_missing_file_is_made_again(tmp_path):
    for harm in (lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.unlink()):
        found = take(Cache(tmp_path))
        path = found.entry.folder / "default.npy"
        del found
        harm(path)
        with pytest.warns(UserWarning, match="default.npy is damaged"):
            assert len(take(Cache(tmp_path)).features("default")) == N


def test_a_full_disk_is_one_sentence_and_the_same_call_goes_on(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFull, match="cannot be written, the disk is full: make room") as caught:
        take(Cache(tmp_path))
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.partial")) + list(tmp_path.rglob("*.npy"))
    monkeypatch.undo()
    assert len(take(Cache(tmp_path)).features("default")) == N


def test_without_a_root_nothing_is_left_behind():
    found = take(Cache(None))
    folder = found.entry.folder
    assert folder.is_dir() and len(found.features("default")) == N
    del found
    assert not folder.exists()

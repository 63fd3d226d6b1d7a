import os
import socket
import time

import pytest
from loopback import quick

from a2mim.data import ImageDataset, open_dataset
from a2mim.data.access import Access
from a2mim.data.sources import expand


def test_a_text_file_lists_shards_and_patterns(shards, tmp_path):
    listing = tmp_path / "train.txt"
    listing.write_text(f"# the first two\npart-0.tar\n\n{tmp_path}/part-1.tar\npart-{{2,3}}.tar\n")
    assert open_dataset(listing).fingerprint == open_dataset(shards).fingerprint
    listing.write_text("part-*.tar")
    assert open_dataset(str(listing)).fingerprint == open_dataset(shards).fingerprint
    listing.write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"train\.txt lists no shard"):
        open_dataset(listing)
    listing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"train\.txt is no text file"):
        open_dataset(listing)


def test_addresses_of_every_kind_are_listed_in_order(tmp_path):
    wanted = ["https://h/a-0.tar?x=1", "https://h/a-1.tar?x=1", "s3://b/c.tar", "pipe:cat {a,b}.tar", "/d/e.tar"]
    sources = ["https://h/a-{0..1}.tar?x=1", "s3://b/c.tar", "pipe:cat {a,b}.tar", "file:///d/e.tar"]
    assert expand(sources) == wanted
    assert expand("pipe:curl -s h/a-{00..01}.tar") == ["pipe:curl -s h/a-00.tar", "pipe:curl -s h/a-01.tar"]
    (tmp_path / "all.urls").write_text("\n".join(sources))
    assert expand(tmp_path / "all.urls") == wanted


def test_variables_of_webdataset_are_put_in(monkeypatch):
    monkeypatch.setenv("WDS_PLACE", "/data")
    assert expand("${PLACE}/a-{0..1}.tar") == ["/data/a-0.tar", "/data/a-1.tar"]
    with pytest.raises(ValueError, match="there is no variable WDS_OTHER in the environment"):
        expand("${OTHER}/a.tar")


def test_an_open_set_is_returned_as_it_is(dataset):
    assert isinstance(dataset, ImageDataset) and open_dataset(dataset) is dataset


def test_a_folder_cannot_be_one_of_several(shards, class_folder, tmp_path):
    with pytest.raises(ValueError, match=r"animals cannot be joined with others"):
        open_dataset([shards, str(class_folder)])
    with pytest.raises(ValueError, match="one entry is int"):
        open_dataset([shards, 7])


@pytest.mark.parametrize(
    "choice", [{"remote": "all"}, {"tries": 0}, {"timeout": 0}, {"cache_bytes": 0}, {"processes": 0}]
)
def test_choices_that_cannot_be_are_refused(choice):
    with pytest.raises(ValueError, match=f"{next(iter(choice))}="):
        Access(**choice)


def test_bad_shards_are_left_out_only_by_choice_and_named(shards, tmp_path):
    (tmp_path / "part-2.tar").write_bytes((tmp_path / "part-2.tar").read_bytes()[:7000])
    access = quick(tmp_path / "cache", skip_bad_shards=True)
    with pytest.warns(UserWarning, match=r"2 bad shards are left out: .*part-2\.tar: byte .*part-4\.tar: there is no"):
        dataset = open_dataset(str(tmp_path / "part-{0..4}.tar"), access=access)
    assert len(dataset) == 29 and dataset.shard_sizes.tolist() == [12, 9, 8]
    assert [sentence.rpartition("/")[2].partition(":")[0] for sentence in dataset.skipped] == [
        "part-2.tar",
        "part-4.tar",
    ]
    assert "2 bad shards skipped" in dataset.describe()
    with pytest.raises(OSError, match=r"2 of 2 shards cannot be used .*: byte \d+: cut short.*no such file"):
        open_dataset(str(tmp_path / "part-{2,4}.tar"), access=access)


def test_a_glob_leaves_out_what_a2mim_and_dali_write_beside_shards(shards, tmp_path):
    """The second time the indices of the first lie there."""
    for name in ("classes.txt", "files.txt", "manifest.json", "written.json", "part-0.idx"):
        (tmp_path / name).write_text("no shard")
    for pattern in ("part-*", "*"):
        assert [len(open_dataset(str(tmp_path / pattern))) for _ in range(2)] == [40, 40]


@pytest.mark.parametrize(
    "pattern",
    [
        "x-{0..999999999}.tar",
        "{a..z}{a..z}{a..z}{a..z}{a..z}.tar",
        "{A..z..2}" * 9,
        "x-{0..9999}-{0..9999}.tar",
        "x-" + "{a,b}" * 40 + ".tar",
        "x-{0.." + "9" * 5000 + "}.tar",
        "x-{" + "7" * 30 + ".." + "7" * 20 + "9" * 10 + "}.tar",
        "https://user:hunter2@host/x-{0..999999999}.tar",
    ],
)
def test_a_pattern_of_more_shards_than_any_set_has_is_refused_at_once(pattern):
    began = time.monotonic()
    with pytest.raises(ValueError, match="1,000,000 are allowed") as error:
        open_dataset(pattern)
    assert time.monotonic() - began < 2 and len(str(error.value)) < 5500 and "hunter2" not in str(error.value)


def test_a_glob_of_thousands_of_folders_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="a pattern of 9,005 characters"):
        open_dataset("*/*" * 3000 + "*.tar")


@pytest.mark.parametrize("names", [["a.txt"], ["a.txt", "b.txt"], ["a.txt", "link.txt"]])
def test_a_list_that_names_itself_is_refused(tmp_path, names):
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        (tmp_path / name).write_text(f"x.tar\n{following}\n")
    with pytest.raises(ValueError, match=r"names itself, through .*a\.txt"):
        open_dataset(tmp_path / "a.txt")


def test_lists_that_name_one_another_many_times_over_are_bounded(tmp_path):
    """Twenty lists of ten lines each would be 10^20 shards."""
    for k in range(20):
        (tmp_path / f"{k}.txt").write_text(f"{k + 1}.txt\n" * 10 if k < 19 else "x.tar\n" * 10)
    began = time.monotonic()
    with pytest.raises(ValueError, match="16 deep"):
        open_dataset(tmp_path / "0.txt")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "sparse"])
@pytest.mark.parametrize("name", ["list.txt", "x.tar"])
def test_only_regular_files_of_a_sane_size_are_read(tmp_path, kind, name):
    """A pipe would be waited for without end, a device or a sparse file would fill the memory."""
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    began = time.monotonic()
    with pytest.raises((OSError, ValueError)) as error:
        open_dataset(path)
    assert time.monotonic() - began < 5 and name in str(error.value)


@pytest.mark.parametrize("pattern", ["x-{0..3.tar", "x-{a,{b}.tar", "x\0.tar"])
def test_a_pattern_that_cannot_be_read_is_one_sentence(pattern):
    with pytest.raises((ValueError, FileNotFoundError)):
        open_dataset(pattern)


def test_a_folder_that_is_not_there_is_said_to_be_no_folder(tmp_path):
    for source in (tmp_path / "fotos", f"{tmp_path}/fotos/", [f"{tmp_path}/fotos"]):
        with pytest.raises(FileNotFoundError, match=rf"no such folder: {tmp_path}/fotos; give a folder"):
            open_dataset(source)
    with pytest.raises(FileNotFoundError, match="1 of 1 shards missing"):
        open_dataset(tmp_path / "fotos.tar")

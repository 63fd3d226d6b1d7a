import os
import pickle

import numpy as np
import pytest
from small_images import encoded, picture, write_tar

from a2mim.data import check_shards, open_dataset
from a2mim.data.decode import decode
from a2mim.data.shards import index as shard_index
from a2mim.data.shards.index import read_index
from a2mim.data.shards.tarfiles import TarError


def test_images_labels_and_names_are_those_of_the_archives(shards, dataset):
    assert len(dataset) == 40 and dataset.shard_sizes.tolist() == [12, 9, 11, 8]
    assert dataset.labels.tolist() == [number % 3 for number in range(40)]
    for i in (0, 11, 12, 39):
        assert np.array_equal(dataset.read(i), decode(encoded(picture(i))))
    assert dataset.name(12).endswith("part-1.tar/00012")
    assert dataset.describe() == f"{shards}: 40 images in 4 shards, 3 classes"


def test_patterns_globs_and_lists_name_the_same_shards(shards, tmp_path):
    one = open_dataset(shards)
    for source in (
        str(tmp_path / "part-{0..3}.tar"),
        [str(tmp_path / f"part-{k}.tar") for k in range(4)],
        [tmp_path / "part-0.tar", str(tmp_path / "part-[123].tar")],
        str(tmp_path / "part-{0,1}.tar") + "::" + str(tmp_path / "part-{2,3}.tar"),
    ):
        assert open_dataset(source).fingerprint == one.fingerprint
    assert len(open_dataset(tmp_path / "part-1.tar")) == 9


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its shards open
def test_samples_are_webdatasets(shards, dataset, tmp_path):
    """The stock pipeline, in its own order of shards and members."""
    import webdataset

    paths = [str(tmp_path / f"part-{k}.tar") for k in range(4)]
    stock = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [dataset.name(i).rpartition("/")[2] for i in range(40)] == [sample["__key__"] for sample in stock]
    assert [int(sample["cls"]) for sample in stock] == dataset.labels.tolist()
    assert all(np.array_equal(decode(sample["jpg"]), dataset.read(i)) for i, sample in enumerate(stock))


def test_grouping_into_samples(tmp_path):
    jpg = encoded(picture(0))
    members = [
        ("d.0/a.b.jpg", b"another field, not an image"),
        ("d.0/a.png", jpg),
        ("d.0/a.JPG", b"second image of a sample"),
        ("d.0/a.json", b'{"label": 7, "width": 3}'),
        ("b.cls", b" 2\n"),
        ("b.jpg", jpg),
        ("._b.jpg", b"macOS"),
        ("__meta__", b"webdataset"),
        ("__notes__/a.jpg", b"webdataset"),
        ("__MACOSX/._a.jpg", b"macOS"),
        ("no-dot", b""),
        ("only-text.txt", b"no image"),
        ("c.json", b"[1]"),
        ("c.jpeg", jpg),
        ("b.jpg", b"the key b again"),
    ]
    write_tar(tmp_path / "x.tar", members)
    dataset = open_dataset(tmp_path / "x.tar")
    assert [dataset.name(i).rpartition("x.tar/")[2] for i in range(len(dataset))] == ["d.0/a", "b", "c"]
    assert dataset.labels.tolist() == [7, 2, -1]
    assert dataset.duplicates == 2 and "2 with a key that was taken left out" in dataset.describe()
    assert dataset.incomplete == 1 and dataset.describe().endswith("1 samples without an image left out")
    assert open_dataset(tmp_path / "x.tar").duplicates == 2  # from the cached index
    report = check_shards(tmp_path / "x.tar")
    assert report.duplicates == 2 and "2 with a key that was taken left out" in str(report)
    assert dataset.read(0).shape == dataset.read(1).shape == (40, 56, 3)


def test_a_label_that_is_no_label_is_an_error_that_shows_it(tmp_path):
    for content in (b"", b"\xff\xfe", b"two\nlines"):
        write_tar(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.cls", content)])
        with pytest.raises(TarError, match=r"x\.tar: a\.cls: a label must be a whole number or a class name, this one"):
            open_dataset(tmp_path / "x.tar")


def test_class_names_come_from_the_list_beside_the_shards(shards, tmp_path):
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\n")
    assert open_dataset(shards).class_names == ["ant", "bee", "cow"]
    (tmp_path / "classes.txt").write_text("ant\n")
    assert open_dataset(shards).class_names is None


def test_the_index_is_cached_and_rebuilt_when_the_shard_changes(shards, tmp_path, monkeypatch):
    path = str(tmp_path / "part-0.tar")
    first = read_index(path)
    assert os.path.exists(path + ".index.npz")
    with monkeypatch.context() as patch:
        patch.setattr(shard_index, "scan", lambda path: pytest.fail("the headers were read again"))
        assert np.array_equal(read_index(path).samples, first.samples)
    write_tar(path, [("new.jpg", encoded(picture(9)))])
    assert len(read_index(path).samples) == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not whole", None])
def test_a_damaged_cached_index_is_rebuilt(shards, tmp_path, damage):
    path = tmp_path / "part-0.tar"
    first, cached = read_index(str(path)), tmp_path / "part-0.tar.index.npz"
    cached.write_bytes(cached.read_bytes()[:-40] if damage is None else damage)
    assert np.array_equal(read_index(str(path)).samples, first.samples)


def test_a_read_only_folder_is_indexed_in_the_users_cache(shards, tmp_path, monkeypatch):
    path = str(tmp_path / "part-0.tar")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = shard_index._write

    def refuse_beside(place, **arrays):
        if place.parent == tmp_path:
            raise PermissionError("read-only")
        real(place, **arrays)

    monkeypatch.setattr(shard_index, "_write", refuse_beside)
    first = read_index(path)
    assert len(list((tmp_path / "cache" / "a2mim" / "indices").glob("*.npz"))) == 1
    monkeypatch.setattr(shard_index, "scan", lambda path: pytest.fail("the headers were read again"))
    assert np.array_equal(read_index(path).samples, first.samples)


def test_all_missing_shards_are_named_at_once(shards, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"2 of 6 shards missing: .*part-4\.tar, .*part-5\.tar"):
        open_dataset(str(tmp_path / "part-{0..5}.tar"))
    with pytest.raises(FileNotFoundError, match=r"96 of 100 shards missing: .*part-8\.tar and 91 more"):
        open_dataset(str(tmp_path / "part-{0..99}.tar"))
    with pytest.raises(FileNotFoundError, match=r"nothing matches '.*none-\*\.tar'"):
        open_dataset(str(tmp_path / "none-*.tar"))
    with pytest.raises(FileNotFoundError, match="'photos'"):
        open_dataset("fotos")


def test_a_cut_shard_is_found_before_training(shards, tmp_path):
    os.truncate(tmp_path / "part-2.tar", 7000)
    with pytest.raises(TarError, match=r"part-2\.tar: byte \d+: .*cut short"):
        open_dataset(shards)


def test_a_shard_named_twice_and_shards_without_images_are_refused(shards, tmp_path):
    with pytest.raises(ValueError, match="more than once"):
        open_dataset([tmp_path / "part-0.tar", shards])
    write_tar(tmp_path / "text.tar", [("a.txt", b"x")])
    with pytest.raises(ValueError, match="no images in"):
        open_dataset(tmp_path / "text.tar")
    with pytest.raises(ValueError, match="empty list"):
        open_dataset([])


def test_keys_do_not_depend_on_the_place_but_on_the_shard(shards, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "part-0.tar").rename(tmp_path / "other" / "part-0.tar")
    moved = open_dataset(tmp_path / "other" / "part-0.tar")
    (tmp_path / "other" / "part-0.tar").rename(tmp_path / "renamed.tar")
    renamed = open_dataset(tmp_path / "renamed.tar")
    assert not set(moved.keys.tolist()) & set(renamed.keys.tolist())


def test_a_data_set_survives_pickling_with_files_open(dataset):
    dataset.read(0)
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(copy.read(20), dataset.read(20))


def test_more_shards_than_file_descriptors_held(dataset, monkeypatch):
    monkeypatch.setattr("a2mim.data.shards.tar_store.MAX_OPEN", 2)
    before = len(os.listdir("/proc/self/fd"))
    for i in (0, 15, 30, 39, 0, 15):
        assert np.array_equal(dataset.read(i), decode(encoded(picture(i))))
    assert len(os.listdir("/proc/self/fd")) <= before + 2

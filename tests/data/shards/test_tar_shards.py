import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from small_images import encoded, picture, write_tar

from a2mim.data import check_shards, open_dataset
from a2mim.data.access import Access
from a2mim.data.decode import decode
from a2mim.data.prepare.reshard import Encoding, reshard
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


def test_names_with_several_dots_are_images_of_their_own(tmp_path):
    jpg = encoded(picture(0))
    dated = [("scan/22.05.JPG", jpg), ("scan/22.06.jpg", jpg), ("scan/22.05.cls", b"1"), ("scan/22.06.cls", b"2")]
    others = [("v1.2/a.png", encoded(picture(1), "png")), ("v1.2/a.seg.png", b"mask"), ("v1.2/b.seg.png", b"mask")]
    write_tar(tmp_path / "x.tar", [*dated, *others, ("3.7.png", jpg), ("3.cls", b"5"), ("4.7.cls", b"6")])
    dataset = open_dataset(tmp_path / "x.tar")
    keys = [dataset.name(i).rpartition("x.tar/")[2] for i in range(len(dataset))]
    assert keys == ["v1.2/a", "scan/22.05", "scan/22.06", "3.7"] and dataset.labels.tolist() == [-1, 1, 2, 5]
    assert dataset.incomplete == 2  # v1.2/b has only a mask, and 4.7 only a label
    made = reshard(tmp_path / "x.tar", tmp_path / "new", Encoding(short_side=None), access=Access(processes=1))
    again = open_dataset(made["pattern"])
    assert sorted(again.labels.tolist()) == [-1, 1, 2, 5] and made["images"] == 4


def write_links(path, *links, files=()):
    """A tar of files and of (name, target, kind) links."""
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)


def test_links_inside_an_archive_are_images_and_labels_too(tmp_path):
    files = [("./d/a.jpg", encoded(picture(0))), ("./d/a.cls", b"1"), ("e.jpg", encoded(picture(1)))]
    links = [
        *(("d/b.jpg", "d/a.jpg", tarfile.LNKTYPE), ("d/b.cls", "d/a.cls", tarfile.LNKTYPE)),
        *(("f/c.jpg", "../d/b.jpg", tarfile.SYMTYPE), ("f/c.cls", "c.txt", tarfile.SYMTYPE)),
        *(("f/c.txt", "../d/a.cls", tarfile.SYMTYPE), ("f/folder", "../d", tarfile.SYMTYPE)),
    ]
    write_links(tmp_path / "x.tar", *links, files=files)
    dataset = open_dataset(tmp_path / "x.tar")
    assert len(dataset) == 4 and dataset.labels.tolist() == [1, -1, 1, 1] and dataset.lost == 0
    assert np.array_equal(dataset.read(2), dataset.read(0)) and np.array_equal(dataset.read(3), dataset.read(0))
    made = reshard(tmp_path / "x.tar", tmp_path / "new", Encoding(short_side=None), access=Access(processes=1))
    again = open_dataset(made["pattern"])
    assert sorted(map(again.store.content, range(4))) == sorted(map(dataset.store.content, range(4)))
    assert sorted(again.labels.tolist()) == [-1, 1, 1, 1]
    assert check_shards(tmp_path / "x.tar").ok


def test_links_that_lead_to_nothing_are_counted_and_fail_the_check(tmp_path):
    links = [
        *(("a.png", "/etc/b.png", tarfile.SYMTYPE), ("b.png", "../b.png", tarfile.SYMTYPE)),
        *(("c.png", "d.png", tarfile.SYMTYPE), ("d.png", "c.png", tarfile.SYMTYPE)),
        *(("x.cls", "gone.cls", tarfile.LNKTYPE), ("README", "gone", tarfile.LNKTYPE)),
    ]
    write_links(tmp_path / "x.tar", *links, files=[("x.png", encoded(picture(0), "png"))])
    for _ in range(2):  # the second time from the cached index
        dataset = open_dataset(tmp_path / "x.tar")
        assert len(dataset) == 1 and dataset.lost == 5 and "5 images or labels lost" in dataset.describe()
    report = check_shards(tmp_path / "x.tar")
    assert not report.ok and "5 images or labels lost" in str(report)


def test_class_names_come_from_the_list_beside_the_shards(shards, tmp_path):
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\n")
    assert open_dataset(shards).class_names == ["ant", "bee", "cow"]
    (tmp_path / "classes.txt").write_text("ant\n")
    assert open_dataset(shards).class_names is None


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


@pytest.mark.parametrize("extra", [(), ("cls",)])
def test_tars_with_a_training_and_a_test_folder_draw_a_warning(tmp_path, extra):
    """Also with labels of their own: the test images would be trained on."""
    jpg, members = encoded(picture(0)), []
    for name in ("train/cat/0", "train/dog/1", "val/cat/2"):
        members += [(f"{name}.jpg", jpg), *((f"{name}.{suffix}", b"1") for suffix in extra)]
    with pytest.warns(UserWarning, match="the folders 'train' and 'val' have the names of parts of a set"):
        open_dataset(write_tar(tmp_path / "mixed.tar", members))


def test_folders_of_classes_in_a_tar_draw_no_warning(tmp_path, recwarn):
    jpg = encoded(picture(0))
    open_dataset(write_tar(tmp_path / "plain.tar", [("cat/0.jpg", jpg), ("train/1.jpg", jpg)]))
    assert not [w for w in recwarn if "parts of a set" in str(w.message)]

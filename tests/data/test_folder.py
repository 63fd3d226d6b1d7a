import errno
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_images import encoded, picture

from a2mim.data import TrainLoader, match_labels, open_dataset
from a2mim.data.errors import MachineError
from a2mim.data.pixel_format import UnreadableImage


def test_first_level_folders_are_the_labels(class_folder):
    dataset = open_dataset(class_folder)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.labels.tolist() == [0] * 7 + [1] * 8
    assert dataset.shard_sizes.tolist() == [15]
    assert dataset.describe() == f"{class_folder}: 15 images, 2 classes"


def test_one_image_outside_the_class_folders_means_no_labels(class_folder):
    (class_folder / "readme.png").write_bytes(encoded(picture(50), "png"))
    dataset = open_dataset(str(class_folder))
    assert len(dataset) == 16 and dataset.class_names is None
    assert (dataset.labels == -1).all()


def test_order_and_keys_do_not_depend_on_the_place(class_folder, tmp_path):
    before = open_dataset(class_folder)
    moved = class_folder.rename(tmp_path / "elsewhere")
    after = open_dataset(moved)
    assert np.array_equal(before.keys, after.keys) and before.fingerprint == after.fingerprint
    assert len(set(before.keys.tolist())) == 15


def test_images_are_read_by_number_and_named_by_path(class_folder):
    dataset = open_dataset(class_folder)
    assert dataset.name(12) == str(class_folder / "dog" / "old" / "image.12.JPG")
    close = np.abs(dataset.read(12).astype(int) - picture(12).astype(int)).mean()
    assert close < 4 and dataset.read(12).shape == (40, 56, 3)


def test_only_images_count_and_hidden_files_do_not(tmp_path):
    for name in ("a.JPEG", "b.Png", "c.webp", "d.tiff", "e.bmp", ".f.jpg", "g.txt", "jpg", ".hidden/h.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    dataset = open_dataset(tmp_path)
    assert [Path(dataset.name(i)).name for i in range(len(dataset))] == ["a.JPEG", "b.Png", "c.webp", "d.tiff", "e.bmp"]


def test_train_and_test_folders_are_splits(tmp_path):
    for number, place in enumerate(["train/a", "train/b", "val/a", "val/b", "train/a"]):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / f"{number}.png").write_bytes(encoded(picture(number), "png"))
    train, test = open_dataset(tmp_path), open_dataset(tmp_path, split="test")
    assert (len(train), len(test)) == (3, 2)
    assert train.splits == ("train", "test") and train.class_names == test.class_names == ["a", "b"]
    with pytest.raises(ValueError, match="split='dev'"):
        open_dataset(tmp_path, split="dev")


def test_an_empty_folder_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"no images in '.*': looked for jpg, jpeg, png"):
        open_dataset(tmp_path)


def test_a_folder_of_shards_says_how_to_name_them(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"it holds 1 tar files; give them as '.*/\*\.tar'"):
        open_dataset(tmp_path)


def test_a_folder_can_be_read_in_other_channels(class_folder):
    dataset = open_dataset(class_folder, in_chans=1)
    assert dataset.read(0).shape == (40, 56, 1)
    with pytest.raises(ValueError, match=r"does not suit: .*a picture of 3, and in_chans=5"):
        open_dataset(class_folder, in_chans=5)


def test_a_file_that_cannot_be_opened_is_one_image_at_fault(class_folder):
    (class_folder / "cat" / "loop.png").write_bytes(encoded(picture(60), "png"))
    dataset = open_dataset(class_folder)
    (class_folder / "cat" / "loop.png").unlink()
    (class_folder / "cat" / "loop.png").symlink_to("loop.png")
    loader = TrainLoader(dataset, 16, 16, num_workers=1)
    assert len(next(iter(loader))["images"]) == 16
    assert loader.faults == {"cannot be opened": 1} and "loop.png" in loader.faults.names[0]


@pytest.mark.parametrize("kind", ["pipe", "sparse"])
def test_what_would_be_waited_for_or_fill_the_memory_is_not_read(class_folder, kind):
    dataset = open_dataset(class_folder)
    path = Path(dataset.name(3))
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
        assert "passed over: 1 pipes and devices" in open_dataset(class_folder).describe()
    else:
        path.touch()
        os.truncate(path, 20 << 30)
    with pytest.raises(UnreadableImage, match=r"no image file: it (is no regular file|has 21,474,836,480 bytes)"):
        dataset.read(3)


def test_a_link_to_a_folder_above_is_not_followed_round(class_folder):
    (class_folder / "cat" / "more").mkdir()
    (class_folder / "cat" / "more" / "up").symlink_to("..")
    (class_folder / "dog" / "top").symlink_to(class_folder)
    (class_folder / "dog" / "self").symlink_to(".")
    (class_folder / "above").symlink_to(class_folder.parent.parent)
    dataset = open_dataset(class_folder)
    assert len(dataset) == 15 and dataset.class_names == ["cat", "dog"]
    assert "3 links to folders that are here already, 1 links to a folder above" in dataset.describe()


def test_each_real_folder_counts_once_and_links_to_others_are_followed(class_folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(encoded(picture(60), "png"))
    for name in ("ape", "bat"):
        (class_folder / name).symlink_to(tmp_path / "elsewhere")
    (class_folder / "copy_of_cat").symlink_to("cat")
    (tmp_path / "root").symlink_to(class_folder)
    for root in (class_folder, tmp_path / "root"):
        dataset = open_dataset(root)
        assert len(dataset) == 16 and dataset.class_names == ["ape", "cat", "dog"]


@pytest.mark.parametrize("name", ["cat", "cat/deep", "."])
@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.EIO])
def test_a_folder_that_cannot_be_listed_is_an_error_that_names_it(class_folder, monkeypatch, name, code):
    (class_folder / "cat" / "deep").mkdir()
    real, refused = os.scandir, os.path.normpath(class_folder / name)

    def scandir(path="."):
        if os.path.normpath(path) == refused:
            raise OSError(code, os.strerror(code), path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match=rf"{class_folder}.* cannot be listed \({os.strerror(code)}\)"):
        open_dataset(class_folder)


def test_links_that_lead_nowhere_are_named_and_passed_over(class_folder):
    (class_folder / "cat" / "gone.jpg").symlink_to("/nowhere/x.jpg")
    (class_folder / "dog" / "loop.jpg").symlink_to("loop.jpg")
    with pytest.warns(UserWarning, match=r"links that lead nowhere are passed over: cat/gone\.jpg and 1 more"):
        dataset = open_dataset(class_folder)
    assert len(dataset) == 15 and "passed over: links that lead nowhere (cat/gone.jpg and 1 more)" in dataset.describe()


def test_files_that_are_no_images_are_counted_by_suffix(class_folder):
    for name in ("phone.HEIC", "tablet.heic", "notes.md", "README", "cat/x.npy"):
        (class_folder / name).write_bytes(b"x")
    said = open_dataset(class_folder).describe().partition("passed over: ")[2]
    assert set(said.split(", ")) == {"2 .heic", "1 .md", "1 without a suffix", "1 .npy"} and said.startswith("2 .heic")


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("jfif", "JPEG"), ("jpe", "JPEG"), ("ppm", "PPM"), ("PGM", "PPM"), ("jp2", "JPEG2000"), ("avif", "AVIF")],
)
def test_less_usual_suffixes_are_images_too(tmp_path, suffix, kind):
    with open(tmp_path / f"a.{suffix}", "wb") as file:
        Image.fromarray(picture(0)).save(file, kind)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 1 and np.abs(dataset.read(0).astype(int) - picture(0)).mean() < 6


@pytest.mark.parametrize("name", ["@eaDir", "$RECYCLE.BIN", "#recycle", "__MACOSX", "cat/@eaDir/0.jpg", "lost+found"])
def test_folders_of_the_system_are_no_classes(class_folder, name):
    (class_folder / name).mkdir(parents=True)
    (class_folder / name / "thumb.jpg").write_bytes(encoded(picture(0)))
    dataset = open_dataset(class_folder)
    assert len(dataset) == 15 and dataset.class_names == ["cat", "dog"]
    assert "passed over: 1 folders of the system" in dataset.describe()


def test_folders_of_runs_are_no_data(class_folder):
    run = class_folder / "runs" / "one"
    (run / "reconstructions").mkdir(parents=True)
    (run / "reconstructions" / "a.png").write_bytes(encoded(picture(0), "png"))
    (run / "log.jsonl").touch()
    dataset = open_dataset(class_folder)
    assert len(dataset) == 15 and dataset.class_names == ["cat", "dog"]
    assert len(open_dataset(run)) == 1  # asked for by name


def fill(root, *places):
    for number, place in enumerate(places):
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / f"{number}.png").write_bytes(encoded(picture(number), "png"))
    return root


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(
            ("train", "valid"),
            ("Train", "Test"),
            ("TRAIN", "TEST"),
            ("training", "validation"),
            ("Training", "Testing"),
        ),
        *(
            ("train", "dev"),
            ("train", "eval"),
            ("train_set", "test_set"),
            ("seg_train", "seg_test"),
            ("TrainSet", "TestSet"),
        ),
        *(("train2017", "val2017"), ("ILSVRC2012_img_train", "ILSVRC2012_img_val"), ("flowers-train", "flowers-valid")),
        *(("trainset", "valset"), ("train", "test1"), ("train/train", "test/test"), ("trn", "tst")),
    ],
)
def test_parts_of_a_set_are_known_by_their_names(tmp_path, train, test):
    fill(tmp_path, f"{train}/a", f"{train}/b", f"{train}/c", f"{test}/a", f"{test}/b")
    train_set, test_set = open_dataset(tmp_path), open_dataset(tmp_path, "test")
    assert (len(train_set), len(test_set)) == (3, 2) and train_set.splits == ("train", "test")
    assert train_set.class_names == ["a", "b", "c"] and test_set.class_names == ["a", "b"]


def test_test_goes_before_val_and_classes_like_parts_are_told_of(tmp_path):
    fill(tmp_path / "three", "train/a", "valid/a", "valid/b", "test/a")
    assert open_dataset(tmp_path / "three", "test").store.root.endswith("test")
    fill(tmp_path / "vehicles", "bus", "train", "car")
    assert open_dataset(tmp_path / "vehicles").class_names == ["bus", "car", "train"]
    fill(tmp_path / "things", "test_tube", "training_shoes", "bus")
    fill(tmp_path / "mixed", "train_a", "train_b", "test_a", "test_b")
    for name, count in (("things", 3), ("mixed", 4)):
        with pytest.warns(UserWarning, match="have the names of parts of a set"):
            assert len(open_dataset(tmp_path / name)) == count


def test_decomposed_names_of_folders_are_the_composed_ones(tmp_path):
    for part, form in (("train", "NFC"), ("test", "NFD")):
        for number, name in enumerate(["café", "thé"]):
            folder = tmp_path / part / unicodedata.normalize(form, name)
            folder.mkdir(parents=True)
            (folder / f"{number}.png").write_bytes(encoded(picture(number + 5 * (part == "test")), "png"))
    train = open_dataset(tmp_path)
    test = match_labels(train, open_dataset(tmp_path, "test"))
    assert train.class_names == test.class_names == ["café", "thé"] and test.labels.tolist() == [0, 1]
    (tmp_path / "train" / unicodedata.normalize("NFD", "café")).mkdir()
    (tmp_path / "train" / unicodedata.normalize("NFD", "café") / "x.png").write_bytes(encoded(picture(9), "png"))
    assert open_dataset(tmp_path).labels.tolist() == [0, 0, 1]


def test_names_that_are_no_utf8_are_read_and_shown(tmp_path):
    for place in (b"a/caf\xe9.jpg", b"stra\xdfe/two\nlines.jpg"):
        path = os.path.join(os.fsencode(tmp_path), place)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(encoded(picture(0)))
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ["a", "stra\\xdfe"] and dataset.read(0).shape == dataset.read(1).shape


def test_too_few_open_files_are_the_machine_s_fault_and_no_image_s(class_folder, monkeypatch):
    dataset = open_dataset(class_folder)

    def full(path):
        raise OSError(errno.EMFILE, "Too many open files", path)

    monkeypatch.setattr("a2mim.data.folder.read_file", full)
    with pytest.raises(MachineError, match=r"too many open files .*ulimit -n"):
        dataset.read(3)

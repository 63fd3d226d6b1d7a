from pathlib import Path

import numpy as np
import pytest
from small_images import encoded, picture

from a2mim.data import TrainLoader, open_dataset


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
    (class_folder / "cat" / "loop.png").symlink_to("loop.png")
    dataset = open_dataset(class_folder)
    loader = TrainLoader(dataset, 16, 16, num_workers=1)
    assert len(next(iter(loader))["images"]) == 16
    assert loader.faults == {"cannot be opened": 1} and "loop.png" in loader.faults.names[0]

"""Text files that name images one by one, as other toolkits write them."""

import numpy as np
import pytest
from small_images import encoded, picture

from a2mim.data import open_dataset


@pytest.fixture
def images(tmp_path):
    for number, name in enumerate(["cat/0.jpg", "cat/1 2.jpg", "dog/0.PNG"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(picture(number), "png" if name.endswith("PNG") else "jpg"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "labels", "classes"),
    [
        ("a.txt", "cat/0.jpg\ncat/1 2.jpg\ndog/0.PNG\n", [-1, -1, -1], None),
        ("meta.txt", "cat/0.jpg 4\ncat/1 2.jpg 4\n# a remark\n\ndog/0.PNG 1\n", [4, 4, 1], None),
        ("a.csv", "path,label\ncat/0.jpg,0\ncat/1 2.jpg, 0\ndog/0.PNG,1\n", [0, 0, 1], None),
        ("a.tsv", "\ufeffcat/0.jpg\tcat\r\ncat/1 2.jpg\tcat\r\ndog/0.PNG\tbig dog\r\n", [1, 1, 0], ["big dog", "cat"]),
        ("a.lst", "cat/0.jpg;0\ncat/1 2.jpg;0,1\ndog/0.PNG;1\n", [0, -1, 1], None),
    ],
)
def test_lists_of_images_are_read(images, name, text, labels, classes):
    (images / name).write_text(text, encoding="utf-8", newline="")
    dataset = open_dataset(images / name)
    assert len(dataset) == 3 and dataset.labels.tolist() == labels and dataset.class_names == classes
    assert dataset.odd_labels == (1 if name == "a.lst" else 0)
    assert np.array_equal(dataset.read(2), picture(2)) and dataset.name(1) == str(images / "cat" / "1 2.jpg")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x/cat/0.jpg 0\n", "a list of images, and 'x/cat/0.jpg', counted from the folder of the list, is not there"),
        ("cat/0.jpg\nshard.tar\n", "a list of images, and this line names none: 'shard.tar'"),
        ("cat/0.jpg\ncat/0.jpg\n", "names 'cat/0.jpg' more than once"),
    ],
)
def test_lists_that_cannot_be_read_say_what_to_do(images, text, said):
    (images / "list.txt").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        open_dataset(images / "list.txt")


def test_a_tilde_is_the_home_folder_and_a_mark_is_no_part_of_a_list(images, monkeypatch, shards):
    monkeypatch.setenv("HOME", str(images))
    assert len(open_dataset("~/cat")) == 2
    (images / "shards.txt").write_text("part-0.tar\r\n", encoding="utf-8-sig", newline="")
    assert len(open_dataset("~/shards.txt")) == len(open_dataset("~/part-0.tar"))

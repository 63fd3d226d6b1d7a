"""Repeated images: copies that were compressed, resized or brightened are found, and other photographs are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from a2mim.analysis.duplicates import duplicates
from a2mim.data import open_dataset


def compressed(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer)


COPIES = {
    "equal": lambda image: image,
    "compressed": compressed,
    "half as large": lambda image: image.resize((image.width // 2, image.height // 2)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "grey": lambda image: image.convert("L"),
}


@pytest.fixture(scope="module")
def photographs():
    """A crop of each of the fourteen built-in photographs."""
    photos = open_dataset("photos")
    first = [int(np.flatnonzero(photos.labels == label)[0]) for label in np.unique(photos.labels)]
    return [Image.fromarray(photos.read(row)) for row in first]


def write(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number:02}.png")
    return open_dataset(folder)


def every(dataset):
    return np.arange(len(dataset))


@pytest.mark.parametrize("kind", COPIES)
def test_a_changed_copy_is_found_and_nothing_else(kind, photographs, tmp_path):
    train = write(tmp_path / "train", [*photographs, COPIES[kind](photographs[3])])
    found = duplicates(train, every(train), train, every(train))
    counts = {"exact": 2, "near": 0} if kind == "equal" else {"exact": 0, "near": 2}
    assert (found["repeated"], found["train"], found["in_both"]) == (counts, 15, None)
    assert [[name.rsplit("/", 1)[1] for name in pair] for pair in found["pairs"]] == [["03.png", "14.png"]]


def test_a_copy_of_two_equal_images_is_near_to_one_of_them(photographs, tmp_path):
    train = write(tmp_path / "train", [*photographs[:4], photographs[0], compressed(photographs[0])])
    found = duplicates(train, every(train), train, every(train))
    assert found["repeated"] == {"exact": 2, "near": 1}
    assert found["message"] == "of 6 training images 2 repeat exactly, and 1 nearly, another one"


def test_test_images_that_repeat_training_images_are_counted_apart(photographs, tmp_path):
    train = write(tmp_path / "train", photographs[:8])
    test = write(tmp_path / "test", [*photographs[8:], photographs[0], compressed(photographs[1])])
    found = duplicates(train, every(train), test, every(test))
    assert found["repeated"] == {"exact": 0, "near": 0}
    assert (found["in_both"], found["test"]) == ({"exact": 1, "near": 1}, 8)
    assert found["message"].endswith("of 8 test images 1 repeat exactly, and 1 nearly, a training image")


def test_damaged_images_are_left_out_and_an_empty_part_has_no_repeats(photographs, tmp_path):
    train = write(tmp_path / "train", photographs[:2])
    (tmp_path / "train" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    train = open_dataset(tmp_path / "train")
    found = duplicates(train, every(train), train, every(train)[:0])
    assert found["train"] == 2 and found["repeated"] == {"exact": 0, "near": 0}
    assert duplicates(train, every(train)[:0], train, every(train))["repeated"] == {"exact": 0, "near": 0}

"""Near-duplicates: copies that were compressed, resized or brightened are found, and other photographs are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from a2mim.analysis.duplicates import near_duplicates
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
    found = near_duplicates(train, every(train), train, every(train))
    assert (found["repeated"], found["train"], found["in_both"]) == (2, 15, None)
    assert [[name.rsplit("/", 1)[1] for name in pair] for pair in found["pairs"]] == [["03.png", "14.png"]]
    assert found["message"] == "2 of 15 training images nearly repeat another one."


def test_test_images_that_repeat_training_images_are_counted_apart(photographs, tmp_path):
    train = write(tmp_path / "train", photographs[:8])
    test = write(tmp_path / "test", [*photographs[8:], compressed(photographs[0]), compressed(photographs[1])])
    found = near_duplicates(train, every(train), test, every(test))
    assert (found["repeated"], found["in_both"], found["test"]) == (0, 2, 8)
    assert found["message"].endswith("2 of 8 test images nearly repeat a training image.")


def test_images_of_one_colour_and_damaged_ones_are_not_compared(photographs, tmp_path):
    flat = [Image.new("RGB", (40, 40), (90, 90, 90))] * 2
    write(tmp_path / "train", [*photographs[:2], *flat])
    (tmp_path / "train" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    train = open_dataset(tmp_path / "train")
    found = near_duplicates(train, every(train), train, every(train))
    assert (found["train"], found["repeated"]) == (2, 0)


def test_a_set_of_which_nothing_can_be_compared_has_none(tmp_path):
    train = write(tmp_path / "train", [Image.new("RGB", (40, 40))] * 3)
    assert near_duplicates(train, every(train), train, every(train))["repeated"] == 0

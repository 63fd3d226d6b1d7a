"""Small data sets, made anew for each test."""

import pytest
from loopback import quick
from small_images import encoded, picture, write_tar

from a2mim.data import open_dataset


@pytest.fixture
def shards(tmp_path):
    """Four shards of 12, 9, 11 and 8 labelled images; returns their glob."""
    number = 0
    for shard, count in enumerate((12, 9, 11, 8)):
        members = []
        for _ in range(count):
            members += [
                (f"{number:05d}.jpg", encoded(picture(number))),
                (f"{number:05d}.cls", str(number % 3).encode()),
            ]
            number += 1
        write_tar(tmp_path / f"part-{shard}.tar", members)
    return str(tmp_path / "part-*.tar")


@pytest.fixture
def dataset(shards):
    return open_dataset(shards)


@pytest.fixture
def class_folder(tmp_path):
    """cat/ (7 images), dog/ (5) and dog/old/ (3)."""
    root = tmp_path / "animals"
    for number in range(15):
        place = root / ("cat" if number < 7 else "dog" if number < 12 else "dog/old")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"image.{number:02d}.JPG").write_bytes(encoded(picture(number)))
    return root


@pytest.fixture
def access(tmp_path):
    """A cache of this test's own, and short waits."""
    return quick(tmp_path / "cache")

"""The sizes that a run reports are those that the decoder gives, and reading them disturbs nothing."""

import io

import numpy as np
import pytest
from PIL import Image

from a2mim.data import decode as decoding
from a2mim.data import open_dataset
from a2mim.data.pixel_format import PixelFormat
from a2mim.data.sizes import LOOKED_AT, size_of, sizes_of

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))


def encoded(kind: str, orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((20, 30, 3), np.uint8))
    return buffer.getvalue()


@pytest.mark.parametrize("exif", [False, True])
@pytest.mark.parametrize("orientation", [None, 3, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_header_gives_the_size_that_decoding_gives(kind, orientation, exif):
    data, form = encoded(kind, orientation), PixelFormat(exif=exif)
    assert size_of(data, form) == decoding.decode(data, pixel_format=form).shape[:2]


def test_arrays_have_their_own_size():
    assert size_of(npy(), PixelFormat()) == (20, 30) == size_of(np.zeros((20, 30, 1), np.uint8), PixelFormat())


def folder_of(tmp_path, sizes):
    for number, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(tmp_path / f"{number:03}.png")
    return open_dataset(tmp_path)


def test_the_least_the_median_and_the_greatest_of_each_side(tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    found = sizes_of(folder_of(tmp_path, [(10, 90), (20, 30), (40, 50)]))
    assert found == {"looked_at": 3, "least": [10, 30], "median": [20, 50], "greatest": [40, 90]}


def test_of_many_images_some_are_looked_at(tmp_path):
    assert sizes_of(folder_of(tmp_path, [(4, 4)] * (LOOKED_AT + 9)))["looked_at"] == LOOKED_AT


def test_no_readable_image_has_no_size(tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    assert sizes_of(open_dataset(tmp_path)) == {}


def test_a_set_from_python_is_not_read():
    class Items:
        reads = 0

        def __len__(self):
            return 8

        def __getitem__(self, i):
            Items.reads += 1
            return np.zeros((5, 6, 3), np.uint8)

    dataset = open_dataset(Items())
    before = Items.reads
    assert sizes_of(dataset) == {} and Items.reads == before

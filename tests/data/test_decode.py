import io

import numpy as np
import pytest
from PIL import Image
from small_images import encoded, picture

from a2mim.data import rasters as module
from a2mim.data.decode import UnreadableImage, decode


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_every_format_gives_what_pillow_gives(suffix):
    data = encoded(picture(1), suffix)
    assert np.array_equal(decode(data), pillow(data))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_of_every_kind_give_what_pillow_gives(subsampling, progressive):
    data = encoded(picture(2, 37, 53), subsampling=subsampling, progressive=progressive)
    assert np.array_equal(decode(data), pillow(data))


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "PA", "LA", "RGBA", "1"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(picture(3))
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    data = saved(image, {"CMYK": "jpeg", "L": "jpeg", "PA": "tiff"}.get(mode, "png"))
    pixels = decode(data)
    assert pixels.shape == (40, 56, 3) and pixels.dtype == np.uint8 and pixels.flags.writeable
    assert np.array_equal(pixels, pillow(data))


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    pixels = decode(saved(Image.fromarray(values), "png"))
    assert np.abs(pixels[:, :, 1] - values / 257).max() <= 0.5


def test_what_cannot_be_decoded_says_why():
    jpeg = encoded(picture(4))
    assert reason(b"") == "empty"
    assert reason(b"<html>not found</html>") == "not an image"
    assert reason(jpeg[: len(jpeg) // 2]) == "damaged"
    assert reason(encoded(picture(4), "png")[:-300]) == "damaged"


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_bomb_is_refused_by_its_header(suffix, monkeypatch):
    data = encoded(picture(5), suffix)
    monkeypatch.setattr(module, "MAX_PIXELS", 40 * 56 - 1)
    assert reason(data) == "too large"
    monkeypatch.setattr(module, "MAX_PIXELS", 40 * 56)
    assert decode(data).shape == (40, 56, 3)


def reason(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as error:
        decode(data)
    return error.value.reason

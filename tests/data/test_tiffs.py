"""TIFF: what is stored is what is read, or the file is refused with its reason."""

import io
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from small_images import picture

from a2mim.data import open_dataset
from a2mim.data import rasters as module
from a2mim.data.decode import PixelFormat, Unfit, UnreadableImage, decode

VALUES = np.random.default_rng(0).integers(1, 255, (40, 48, 4)).astype(np.uint8)
PLANES = np.ascontiguousarray(VALUES.transpose(2, 0, 1))


def tiff(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def opened(values: np.ndarray, in_chans: int, **options) -> np.ndarray:
    bits = 8 if values.dtype == np.uint8 else 16
    return decode(tiff(values, **options), pixel_format=PixelFormat(in_chans, bits))


BANDS = {
    "RGB and infrared": (4, VALUES, dict(photometric="rgb", extrasamples=["unspecified"])),
    "RGB and alpha": (4, VALUES, dict(photometric="rgb", extrasamples=["unassalpha"])),
    "RGB and multiplied alpha": (4, VALUES, dict(photometric="rgb", extrasamples=["assocalpha"])),
    "four sensors": (4, VALUES, dict(photometric="minisblack", planarconfig="contig")),
    "three sensors": (3, VALUES[..., :3].copy(), dict(photometric="minisblack", planarconfig="contig")),
    "two sensors": (2, VALUES[..., :2].copy(), dict(photometric="minisblack", planarconfig="contig")),
    "RGB and infrared, planes": (
        *(4, PLANES, dict(photometric="rgb", planarconfig="separate", extrasamples=["unspecified"])),
    ),
    "four sensors, planes": (4, PLANES, dict(photometric="minisblack", planarconfig="separate")),
    "RGB, planes": (3, PLANES[:3], dict(photometric="rgb", planarconfig="separate")),
    "tiles": (*(4, VALUES, dict(photometric="rgb", extrasamples=["unspecified"], tile=(16, 16), compression="zlib")),),
    "predictor": (
        *(4, VALUES, dict(photometric="rgb", extrasamples=["unspecified"], predictor=True, compression="zlib")),
    ),
    "BigTIFF": (4, VALUES, dict(photometric="rgb", extrasamples=["unspecified"], bigtiff=True)),
    "big-endian": (4, VALUES, dict(photometric="rgb", extrasamples=["unspecified"], byteorder=">")),
}


@pytest.mark.parametrize("kind", BANDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bands_come_as_they_are_stored(kind, dtype):
    in_chans, values, options = BANDS[kind]
    if kind == "predictor" and dtype == np.uint16:
        options = dict(options, predictor=False)
    values = values.astype(dtype)
    expected = values if values.shape[2] == in_chans else values.transpose(1, 2, 0)
    assert np.array_equal(opened(values, in_chans, **options), expected)


@pytest.mark.parametrize("kind", ["RGB and infrared", "four sensors", "three sensors", "two sensors"])
def test_bands_are_never_taken_for_a_picture(kind):
    number, values, options = BANDS[kind]
    for in_chans in {1, 2, 3, 4, 5} - {number}:
        with pytest.raises(Unfit, match=rf"a TIFF of {number} bands \(\w+ and \d more\), and in_chans={in_chans}"):
            opened(values, in_chans, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_are_converted_as_before(dtype):
    rgb, grey = VALUES[..., :3].astype(dtype), VALUES[..., 0].astype(dtype)
    assert np.array_equal(opened(grey, 3, photometric="minisblack"), np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(opened(grey, 1, photometric="miniswhite")[:, :, 0], np.iinfo(dtype).max - grey)
    assert opened(rgb, 1, photometric="rgb").shape == (40, 48, 1)
    with_alpha = opened(VALUES.astype(dtype), 3, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(with_alpha, rgb)
    with pytest.raises(Unfit, match="and in_chans=5"):
        opened(rgb, 5, photometric="rgb")


@pytest.mark.parametrize("value", [0, 1, 2])
def test_four_bands_in_lzw_are_read_as_they_are_stored(value):
    """Pillow writes an alpha; the tag is changed to what others write: 0 unspecified, 1 multiplied alpha."""
    buffer = io.BytesIO()
    Image.fromarray(VALUES, "RGBA").save(buffer, "TIFF", compression="tiff_lzw")
    data = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        data[file.pages[0].tags[338].valueoffset] = value
    assert np.array_equal(decode(bytes(data), pixel_format=PixelFormat(4)), VALUES)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    "options",
    [
        dict(imagej=True, metadata={"axes": "CYX"}),
        dict(ome=True, metadata={"axes": "CYX"}),
        dict(photometric="minisblack"),
        dict(ome=True, metadata={"axes": "CYX"}, compression="zlib"),
    ],
)
def test_channels_that_are_pages_are_read_or_refused(dtype, options):
    if options.get("imagej") and dtype == np.float32:
        options = dict(options)
    values = PLANES[:3].astype(dtype)
    data = tiff(values, **options)
    form = PixelFormat(3, 16 if dtype != np.uint8 else 8, value_range=(0, 65535) if dtype == np.float32 else None)
    assert np.array_equal(decode(data, pixel_format=form), values.transpose(1, 2, 0))
    for in_chans in (1, 2, 4, 5):
        with pytest.raises(Unfit, match="a TIFF of 3 channels on its pages"):
            decode(data, pixel_format=PixelFormat(in_chans))


@pytest.mark.parametrize(("axes", "shape"), [("TYX", (5, 40, 48)), ("ZYX", (3, 40, 48)), ("ZCYX", (2, 3, 40, 48))])
@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_time_and_depth_are_refused_by_name(axes, shape, kind):
    data = tiff(np.zeros(shape, np.uint8), metadata={"axes": axes}, **{kind: True})
    with pytest.raises(Unfit, match=rf"other axes: a TIFF with the axes {shape[0]} {axes[0]} .*time and depth are not"):
        decode(data, pixel_format=PixelFormat(3))


def pages(count: int, grey: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for k in range(count):
            writer.write(picture(k)[..., 0] if grey else picture(k), metadata=None)
    return buffer.getvalue()


def test_pages_of_a_document_are_pages_and_not_a_picture_of_one():
    assert np.array_equal(decode(pages(4, grey=False)), picture(0))
    assert np.array_equal(decode(pages(4)), np.repeat(picture(0)[..., :1], 3, axis=2))
    with pytest.raises(Unfit, match="3 grey pages, and in_chans=3: store them as one page of 3 bands"):
        decode(pages(3))
    assert decode(pages(6), pixel_format=PixelFormat(6)).shape == (40, 56, 6)
    with pytest.raises(Unfit, match=r"a TIFF of 1 band \(grey\), the first of 4 pages, and in_chans=6"):
        decode(pages(4), pixel_format=PixelFormat(6))


def test_a_tiff_of_many_bands_is_refused_before_it_takes_memory():
    """500 bands of 4,000 x 1,000 pixels, of which no byte is in the file."""
    data = bytearray(tiff(np.zeros((1, 1, 500), np.uint8), photometric="minisblack", planarconfig="contig"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        for tag, value in ((256, 4000), (257, 1000)):
            place = file.pages[0].tags[tag].valueoffset
            data[place : place + 2] = value.to_bytes(2, "little")
    with pytest.raises(Unfit, match="a TIFF of 500 bands"):
        decode(bytes(data))
    with pytest.raises(UnreadableImage, match="too large: 2,000,000,000 bytes when decoded"):
        decode(bytes(data), pixel_format=PixelFormat(500))


def test_a_strip_that_inflates_beyond_its_size_is_damaged(monkeypatch):
    data = tiff(VALUES, photometric="rgb", extrasamples=["unspecified"], compression="zlib")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        offset, count = page.dataoffsets[0], page.databytecounts[0]
    bomb = zlib.compress(bytes(7_000_000))
    assert len(bomb) <= count
    data = data[:offset] + bomb + data[offset + len(bomb) :]
    with pytest.raises(UnreadableImage, match="damaged: a strip or tile holds more than"):
        decode(data, pixel_format=PixelFormat(4))


@pytest.mark.parametrize("nodata", [np.nan, -9999.0])
def test_pixels_without_data_are_filled(tmp_path, nodata):
    rng = np.random.default_rng(1)
    for i in range(3):
        values = rng.uniform(500, 3000, (20, 20, 4)).astype(np.float32)
        values[:4] = nodata
        tifffile.imwrite(tmp_path / f"{i}.tif", values, photometric="minisblack", planarconfig="contig")
    form = dict(in_chans=4, value_range=(0, 3000))
    for fill, expected in ((None, 0), (1500, 0.5)):
        dataset = open_dataset(tmp_path, **form, nodata=nodata, fill=fill)
        pixels = dataset.read(2)
        assert np.allclose(pixels[:4] / 65535, expected, atol=1e-4)
        assert np.allclose(pixels[4:] / 65535, values[4:] / 3000, atol=1e-4)
    assert dataset.fingerprint != open_dataset(tmp_path, **form, nodata=nodata).fingerprint
    if np.isnan(nodata):
        with pytest.raises(UnreadableImage, match=r"not finite: .*set data.nodata=nan"):
            open_dataset(tmp_path, **form).read(0)


def test_nodata_of_whole_numbers_is_filled_too(tmp_path):
    values = VALUES.copy()
    values[:4] = 255
    tifffile.imwrite(tmp_path / "0.tif", values, photometric="rgb", extrasamples=["unspecified"])
    pixels = open_dataset(tmp_path, in_chans=4, nodata=255, fill=7).read(0)
    assert (pixels[:4] == 7).all() and np.array_equal(pixels[4:], np.where(VALUES == 255, 7, VALUES)[4:])
    with pytest.raises(ValueError, match="fill=300 cannot be stored"):
        open_dataset(tmp_path, in_chans=4, nodata=255, fill=300)
    for wrong in (dict(fill=3), dict(nodata=0, fill=np.inf)):
        with pytest.raises(ValueError, match="fill="):
            PixelFormat(**wrong)


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    data = tiff(VALUES, photometric="rgb", extrasamples=["unspecified"])
    monkeypatch.setattr(module, "MAX_PIXELS", 40 * 48 - 1)
    with pytest.raises(UnreadableImage, match="too large"):
        decode(data, pixel_format=PixelFormat(4))

import io

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from small_images import encoded, npy, picture, write_tar

from a2mim.data import EvalLoader, TrainLoader, open_dataset
from a2mim.data.decode import REDUCED, PixelFormat, Unfit, UnreadableImage, decode

DEEP = np.random.default_rng(0).integers(0, 65536, (20, 30, 4), dtype=np.uint16)


def tiff(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def deep_png(values: np.ndarray) -> bytes:
    order = [2, 1, 0, 3][: values.shape[2]] if values.shape[2] >= 3 else [0]
    return cv2.imencode(".png", values[:, :, order])[1].tobytes()


def tagged(pixels: np.ndarray, kind: str, orientation: int) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "jpeg" else {"lossless": True} if kind == "webp" else {}
    Image.fromarray(pixels).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["png", "tiff", "lzw"])
def test_sixteen_bits_stay_sixteen_bits(channels, kind):
    values = DEEP[:, :, :channels]
    if kind == "png":
        data = deep_png(values)
    elif kind == "tiff":
        data = tiff(values, photometric="rgb" if channels > 2 else "minisblack", compression="zlib")
    else:
        order = [2, 1, 0, 3][:channels] if channels > 2 else [0]
        data = cv2.imencode(".tif", values[:, :, order], [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    pixels = decode(data, pixel_format=PixelFormat(channels, bits=16))
    assert pixels.dtype == np.uint16 and np.array_equal(pixels, values)


def test_sixteen_bits_in_a_set_of_eight_are_rounded_and_counted():
    notes = []
    pixels = decode(deep_png(DEEP[:, :, :3]), notes)
    assert notes == [REDUCED] and pixels.dtype == np.uint8
    assert np.abs(pixels - DEEP[:, :, :3] / 257).max() <= 0.5


def test_eight_bits_in_a_set_of_sixteen_lose_nothing():
    pixels = decode(encoded(picture(0), "png"), pixel_format=PixelFormat(bits=16))
    assert np.array_equal(pixels, picture(0).astype(np.uint16) * 257)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 13, 20])
def test_arrays_of_any_channel_count_come_as_they_are(channels, dtype):
    values = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (12, 17, channels)).astype(dtype)
    form = PixelFormat(channels, bits=8 * dtype().itemsize)
    for stored in (values, values.transpose(2, 0, 1), np.asfortranarray(values)):
        pixels = decode(npy(stored), pixel_format=form)
        assert np.array_equal(pixels, values) and pixels.flags.c_contiguous and pixels.flags.writeable
    if channels == 1:
        assert np.array_equal(decode(npy(values[:, :, 0]), pixel_format=form), values)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiffs_of_many_bands_come_as_they_are(planar, dtype):
    values = np.random.default_rng(2).integers(0, 255, (16, 24, 6)).astype(dtype)
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    data = tiff(stored, photometric="minisblack", planarconfig=planar)
    assert np.array_equal(decode(data, pixel_format=PixelFormat(6, bits=8 * dtype().itemsize)), values)


@pytest.mark.parametrize("make", [npy, lambda v: tiff(v, photometric="minisblack", planarconfig="contig")])
def test_other_types_need_a_range_and_are_scaled_from_it(make):
    values = np.linspace(-1, 3, 12 * 17 * 5).reshape(12, 17, 5).astype(np.float32)
    with pytest.raises(Unfit, match="float32, which needs value_range"):
        decode(make(values), pixel_format=PixelFormat(5, bits=16))
    pixels = decode(make(values), pixel_format=PixelFormat(5, bits=16, value_range=(0, 2)))
    assert np.abs(pixels / 65535 - (values / 2).clip(0, 1)).max() <= 0.5 / 65535 + 1e-6
    values[3, 4, 1] = np.nan
    with pytest.raises(UnreadableImage, match="not finite"):
        decode(make(values), pixel_format=PixelFormat(5, bits=16, value_range=(0, 2)))


def test_arrays_that_are_damaged_or_not_images_are_one_images_fault():
    whole = npy(np.zeros((8, 8, 3), np.uint8))
    for data in (whole[:-5], whole[:20], whole[:9], npy(np.array([{"a": 1}], dtype=object))):
        with pytest.raises(UnreadableImage):
            decode(data)
    for shape in ((8, 8), (8, 8, 4), (2, 8, 8, 3), (0, 8, 3), (7,)):
        with pytest.raises(Unfit, match="other channels"):
            decode(npy(np.zeros(shape, np.uint8)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_orientation_is_applied_on_request_and_alike_for_every_format(kind, orientation):
    pixels = np.repeat(np.repeat(picture(3, 5, 7), 8, axis=0), 8, axis=1)
    data = tagged(pixels, kind, orientation)
    slow = {1: "", 2: "m", 3: "rr", 4: "rrm", 5: "rm", 6: "r", 7: "rrrm", 8: "rrr"}[orientation]
    expected = pixels
    for step in slow:  # r: a quarter clockwise; m: mirrored left to right; EXIF 2.32, table of tag 0x0112
        expected = np.rot90(expected, -1) if step == "r" else expected[:, ::-1]
    for exif, wanted in ((False, pixels), (True, expected)):
        found = decode(data, pixel_format=PixelFormat(exif=exif))
        assert found.shape == wanted.shape and np.abs(found.astype(int) - wanted).mean() < 6


def test_orientation_of_a_deep_tiff_is_treated_alike():
    for options in ({}, {"compression": "zlib"}):
        data = tiff(DEEP[:, :, :3], photometric="rgb", extratags=[(274, 3, 1, 6, True)], **options)
        assert np.array_equal(decode(data, pixel_format=PixelFormat(bits=16)), DEEP[:, :, :3])
        turned = decode(data, pixel_format=PixelFormat(bits=16, exif=True))
        assert np.array_equal(turned, np.rot90(DEEP[:, :, :3], -1))


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_counts(kind):
    frames = [Image.fromarray(picture(k)).convert("P" if kind == "gif" else "RGB") for k in range(3)]
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {}
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(decode(buffer.getvalue()), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK"])
@pytest.mark.parametrize(("in_chans", "as_mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_pictures_become_what_pillow_makes_of_them(mode, in_chans, as_mode):
    image = Image.fromarray(picture(4)).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(picture(5)[:, :, 0]))
    buffer = io.BytesIO()
    image.save(buffer, "tiff" if mode == "CMYK" else "png")
    # Pillow converts a palette straight to grey with another rounding
    expected = np.asarray((image.convert("RGB") if mode in ("P", "CMYK") else image).convert(as_mode)).reshape(
        40, 56, -1
    )
    found = decode(buffer.getvalue(), pixel_format=PixelFormat(in_chans))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpegs_become_grey_as_in_pillow(mode):
    buffer = io.BytesIO()
    Image.fromarray(picture(6)).convert(mode).save(buffer, "jpeg")
    expected = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB").convert("L")
    assert np.array_equal(decode(buffer.getvalue(), pixel_format=PixelFormat(1))[:, :, 0], np.asarray(expected))


def arrays(tmp_path, dtype, count=12, channels=5):
    rng = np.random.default_rng(3)
    values = [rng.integers(0, np.iinfo(dtype).max, (24, 31, channels)).astype(dtype) for _ in range(count)]
    write_tar(tmp_path / "arrays.tar", [(f"{i:03d}.npy", npy(v)) for i, v in enumerate(values)])
    for i, v in enumerate(values):
        (tmp_path / "folder").mkdir(exist_ok=True)
        np.save(tmp_path / "folder" / f"{i:03d}.npy", v)
    return values


@pytest.mark.parametrize("source", ["arrays.tar", "folder"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_arrays_reach_the_batches_with_channels_and_bits(tmp_path, source, dtype, num_workers):
    values = arrays(tmp_path, dtype)
    dataset = open_dataset(str(tmp_path / source), in_chans=5)
    for loader in (
        TrainLoader(dataset, 16, 4, num_workers=num_workers),
        EvalLoader(dataset, 16, 20, batch_size=4, num_workers=num_workers),
        EvalLoader(dataset, 24, 24, "bilinear", batch_size=5, num_workers=num_workers),
    ):
        for batch in loader:
            assert batch["images"].shape[1] == 5 and batch["images"].numpy().dtype == dtype
    shown = batch["images"][0].numpy().transpose(1, 2, 0)  # the last loader only cuts
    left = round((31 - 24) / 2)
    assert np.array_equal(shown, values[int(batch["ids"][0])][:, left : left + 24])


def test_data_that_do_not_suit_are_refused_when_opened(tmp_path):
    arrays(tmp_path, np.uint8)
    with pytest.raises(ValueError, match=r"000 does not suit: .*in_chans=3 asks for .*set data.in_chans"):
        open_dataset(str(tmp_path / "arrays.tar"))
    np.save(tmp_path / "folder" / "000.npy", np.zeros((9, 9, 5), np.float32))
    with pytest.raises(ValueError, match=r"float32, which needs value_range.*give data.value_range"):
        open_dataset(str(tmp_path / "folder"), in_chans=5)
    assert open_dataset(str(tmp_path / "folder"), in_chans=5, value_range=(0, 1)).pixel_format.bits == 16


def test_an_open_data_set_keeps_the_form_that_it_was_opened_with(tmp_path):
    arrays(tmp_path, np.uint16)
    dataset = open_dataset(str(tmp_path / "folder"), in_chans=5, bits=8, exif=True)
    assert open_dataset(dataset, in_chans=5) is dataset and dataset.pixel_format == PixelFormat(5, 8, True)
    with pytest.raises(ValueError, match="was opened with in_chans=5, but in_chans=3 is needed"):
        open_dataset(dataset)


def test_arrays_beside_pictures_are_not_images(tmp_path):
    members = [
        (f"{i}.{kind}", data)
        for i in range(3)
        for kind, data in (("npy", npy(np.zeros(8))), ("jpg", encoded(picture(i))))
    ]
    dataset = open_dataset(str(write_tar(tmp_path / "both.tar", members)))
    assert len(dataset) == 3 and dataset.duplicates == 0 and dataset.read(2).shape == (40, 56, 3)
    (tmp_path / "both").mkdir()
    for name, data in members:
        (tmp_path / "both" / name).write_bytes(data)
    assert len(open_dataset(str(tmp_path / "both"))) == 3


def test_wrong_formats_are_one_sentence():
    for arguments, message in (
        (dict(in_chans=0), "in_chans=0 must be at least 1"),
        (dict(bits=12), "bits=12 must be 8 or 16"),
        (dict(value_range=(1, 1)), r"value_range=\(1, 1\) must be"),
    ):
        with pytest.raises(ValueError, match=message):
            PixelFormat(**arguments)


def test_a_set_that_is_read_in_another_way_is_other_data(tmp_path):
    (tmp_path / "0.png").write_bytes(encoded(picture(0), "png"))
    ways = (dict(), dict(exif=True), dict(in_chans=1), dict(bits=16), dict(in_chans=1, bits=16))
    prints = [open_dataset(tmp_path, **way).fingerprint for way in ways]
    assert len(set(prints)) == 5 and prints[0] == open_dataset(tmp_path, bits=8).fingerprint

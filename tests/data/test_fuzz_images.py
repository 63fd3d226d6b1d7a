"""Seeded damage to images of every format: an image or an UnreadableImage, no hang, no leap of memory, nothing else."""

import io
import random
import resource
import time

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin
from small_images import encoded, picture

from a2mim.data.decode import LENIENT, PixelFormat, UnreadableImage, decode

PER_KIND = 120  # damaged copies
FORM = PixelFormat(3, 16, value_range=(0, 1), nodata=7)


def saved(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


DEEP = picture(0).astype(np.uint16) * 257
WHOLE = {
    "jpeg": encoded(picture(0)),
    "cmyk": (lambda b: (Image.fromarray(picture(0)).convert("CMYK").save(b, "JPEG"), b.getvalue())[1])(io.BytesIO()),
    "png": saved("PNG"),
    "webp": saved("WEBP"),
    "gif": saved("GIF"),
    "bmp": saved("BMP"),
    "ppm": saved("PPM"),
    "deep ppm": b"P6 56 40 65535\n" + DEEP.astype(">u2").tobytes(),
    "jp2": saved("JPEG2000"),
    "avif": saved("AVIF"),
    "tiff": saved("TIFF"),
    "bands": tiff(picture(0), photometric="minisblack", planarconfig="contig"),
    "deflate": tiff(DEEP, photometric="rgb", compression="zlib"),
    "pages": tiff(DEEP.transpose(2, 0, 1).copy(), imagej=True, metadata={"axes": "CYX"}),
    "ome": tiff(DEEP.transpose(2, 0, 1).copy(), ome=True, metadata={"axes": "CYX"}),
    "npy": npy(np.linspace(0, 1, 40 * 56 * 3).reshape(40, 56, 3)),
}


def damaged(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.choice([rng.randrange(len(data)), rng.randrange(min(len(data), 300))])
        kind = rng.randrange(4)
        if kind == 0:
            data[place] = rng.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[place : place + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
        else:
            del data[max(8, place) :]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WHOLE)
def test_damage_of_any_kind_is_one_images_fault(kind, caplog):
    rng = random.Random(kind)
    assert decode(WHOLE[kind], pixel_format=FORM).shape == (40, 56, 3)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for _ in range(PER_KIND):
        try:
            pixels = decode(damaged(WHOLE[kind], rng), pixel_format=FORM)
        except UnreadableImage as error:
            assert str(error).isprintable()
        else:
            assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint16
    assert time.process_time() - started < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_500_000  # kB; 64 megapixels are allowed


def npy_header(text: bytes, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + bytes(64)


@pytest.mark.parametrize(
    "text",
    [
        *(b"{'descr': '<f8', 'fortran_order': False, 'shape': (%s, 3)}" % shape for shape in (b"-1, 4", b"1, 10**400")),
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (%s, 1, 3)}" % (b"9" * 300),
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1 + 2, 3)}",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (60000, 1000, 3)}",
        b"{'descr': ('<f8', (1000000000,)), 'fortran_order': False, 'shape': (4, 4, 3)}",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (4, 4, 3)}",
        b"{'descr': '<U1000000', 'fortran_order': False, 'shape': (4, 4, 3)}",
        b"{'descr': '<M8[s]', 'fortran_order': False, 'shape': (4, 4, 3)}",
        b"(" * 9000,
        b"__import__('os').system('true')",
        b"\xff\xfe",
        b"",
    ],
)
def test_headers_of_arrays_are_not_believed(text):
    with pytest.raises(UnreadableImage):
        decode(npy_header(text), pixel_format=PixelFormat(3, 16, value_range=(0, 1)))
    with pytest.raises(UnreadableImage):
        decode(npy_header(text, b"\x09\x09"))


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n",
        b"\xc5\xd0\xd3\xc6" + bytes(60),
        b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0,0,0,0,0,0,0,0};",
        b"%PDF-1.4\n",
        b"\xd7\xcd\xc6\x9a" + bytes(80),
    ],
)
def test_formats_that_nobody_asked_for_are_no_images(data, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(UnreadableImage, match="not an image"):
        decode(data)


@pytest.mark.parametrize("chunk", ["text", "icc", "itxt"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_with_megabytes_of_text_or_profile_is_whole(chunk, bits):
    info, options = PngImagePlugin.PngInfo(), {}
    if chunk == "icc":
        options["icc_profile"] = bytes(3 << 20)
    elif chunk == "text":
        info.add_text("parameters", "x" * (3 << 20), zip=True)
    else:
        info.add_itxt("notes", "y" * (3 << 20), zip=True)
    image = Image.fromarray(picture(0) if bits == 8 else DEEP[:, :, 0])
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, exif=exif, **options)
    for turned in (False, True):
        pixels = decode(buffer.getvalue(), pixel_format=PixelFormat(3 if bits == 8 else 1, bits, exif=turned))
        expected = np.asarray(image).reshape(40, 56, -1)
        assert np.array_equal(pixels, np.rot90(expected, -1) if turned else expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_damage_that_libjpeg_only_warns_about_is_counted(mode):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG", quality=95)
    whole, notes = buffer.getvalue(), []
    assert decode(whole, notes).shape == (200, 300, 3) and notes == []
    counted, refused, rng = 0, 0, random.Random(0)
    for _ in range(40):
        data, notes = bytearray(whole), []
        data[rng.randrange(len(whole) // 2, len(whole) - 50)] ^= 1 << rng.randrange(8)
        try:
            decode(bytes(data), notes)
            counted += notes == [LENIENT]
        except UnreadableImage:
            refused += 1
    assert counted > 5 and refused < 20


def test_deep_portable_maps_keep_their_values():
    for header, values in ((b"P6\n# a remark\n56 40\n65535\n", DEEP), (b"P5 56 40 4095\n", DEEP[:, :, :1] % 4096)):
        pixels = decode(header + values.astype(">u2").tobytes(), pixel_format=PixelFormat(values.shape[2], 16))
        assert np.array_equal(pixels, values)
    with pytest.raises(UnreadableImage, match="too large"):
        decode(b"P6 99999 99999 65535\n" + bytes(100))

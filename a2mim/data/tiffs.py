"""TIFF: bands as they are stored.

The tags of the file decide. A picture is grey or RGB, with an alpha channel only if a tag says so; Pillow reads the
simple ones. Everything else is bands (near infrared beside RGB, several grey bands, channels stored as pages). Their
number must be in_chans. Bands are not converted, multiplied or dropped.

Source: TIFF 6.0, PhotometricInterpretation and ExtraSamples; tifffile's names of axes.
"""

import io
import logging
import lzma
import math
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from a2mim.data.pixel_format import Unfit, UnreadableImage, turn
from a2mim.data.rasters import by_opencv, refuse_bomb, refuse_bytes

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffFrame, TiffPage, TiffPageSeries

# tifffile logs damage and quotes the file. Without a handler, Python would print that to the terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MINISWHITE, _MINISBLACK, _RGB = 0, 1, 2  # PhotometricInterpretation
_ASSOCIATED, _UNASSOCIATED = 1, 2  # ExtraSamples: alpha that is multiplied into the colours, or not
_DEFLATE, _LZMA = (8, 32946, 50013), (34925,)  # Compression
_INTERLEAVED = ("YXS", "YX", "SYX")  # axes of one page
_CHANNEL_AXES = "CSQ"  # channels, samples, and an unnamed axis of an array
_LZMA_MEMORY = 256 << 20  # bytes
_MOST_PAGES = 10_000


class Tiff(NamedTuple):
    """values: (H, W, C) as stored; is_picture: grey or RGB, with or without alpha, so that it may be converted."""

    values: np.ndarray
    is_picture: bool


def decode_tiff(data: bytes, in_chans: int) -> Tiff | None:
    """The first image of a file, or all channels that are stored as pages; None: Pillow reads it.

    Raises:
        Unfit: the number of bands is not in_chans, or there are axes such as time and depth.
        UnreadableImage: the file is damaged or too large, or its compression needs another package.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data), _multifile=False) as file:  # OME files can refer to other files
        page = file.pages.first  # as pages[0], which can be a frame only when the caller asks for frames
        if page.photometric not in (_MINISWHITE, _MINISBLACK, _RGB) or page.bitspersample < 8 or page.dtype is None:
            return None
        series = _channels_as_pages(file, in_chans)
        if series is not None:
            values = _read_series(series, in_chans)
            is_picture = False
        else:
            is_picture = _is_picture(page)
            if is_picture and page.dtype == np.uint8 and in_chans <= 4 and _suits_pillow(page):
                return None
            if not (is_picture and in_chans <= 4) and page.samplesperpixel != in_chans:
                raise Unfit("other channels", _described(page, file, in_chans))
            values = _read_page(page, data)
        if page.photometric == _MINISWHITE and page.dtype.kind == "u":
            values = np.iinfo(page.dtype).max - values
    return Tiff(values, is_picture)


def _is_picture(page: "TiffPage") -> bool:
    """True for grey or RGB of unsigned integers with at most one alpha channel."""
    colours = 3 if page.photometric == _RGB else 1
    extra = tuple(map(int, page.extrasamples))
    alpha = page.samplesperpixel == colours + 1 and extra in ((_ASSOCIATED,), (_UNASSOCIATED,))
    return (page.samplesperpixel == colours or alpha) and page.dtype in (np.uint8, np.uint16)


def _suits_pillow(page: "TiffPage") -> bool:
    """True if Pillow returns the stored values; it divides colours by an associated alpha."""
    return _ASSOCIATED not in tuple(map(int, page.extrasamples))


def _described(page: "TiffPage", file: "TiffFile", in_chans: int) -> str:
    pages = f", the first of {len(file.pages)} pages" if _has_more_pages(file) else ""
    kind = {_RGB: "RGB", _MINISBLACK: "grey", _MINISWHITE: "grey"}[int(page.photometric)]
    others = f" ({kind} and {len(page.extrasamples)} more)" if page.extrasamples else f" ({kind})"
    bands = "1 band" if page.samplesperpixel == 1 else f"{page.samplesperpixel} bands"
    return f"a TIFF of {bands}{others}{pages}, and in_chans={in_chans}"


def _has_more_pages(file: "TiffFile") -> bool:
    try:
        return file.pages[1] is not None
    except IndexError:
        return False


def _channels_as_pages(file: "TiffFile", in_chans: int) -> "TiffPageSeries | None":
    """The first series of a file if its channels are stored as pages; None if the first page is the whole image.

    Pages without a named axis ("I") are pages of a document, and the first one is used. If their number equals
    in_chans, they are channels.
    """
    if not (file.is_imagej or file.is_ome or file.is_shaped or _has_more_pages(file)):
        return None
    if len(file.pages) > _MOST_PAGES:
        raise UnreadableImage("too large", f"a TIFF of {len(file.pages)} pages, at most {_MOST_PAGES} are listed")
    series = file.series[0]
    length = {axis: n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YX" and n > 1}
    beside = [axis for axis in length if axis not in _CHANNEL_AXES]
    if beside == ["I"] and "C" not in length:
        pages = length["I"]
        if pages != in_chans or "S" in length:
            return None
        if in_chans <= 4:
            raise Unfit(
                "other axes",
                f"a TIFF of {pages} grey pages, and in_chans={in_chans}: store them as one page of {pages} bands if"
                " they are channels",
            )
        return series
    if beside:
        shape = " x ".join(f"{n} {axis}" for axis, n in zip(series.axes, series.shape, strict=True))
        raise Unfit("other axes", f"a TIFF with the axes {shape}; give one plane: time and depth are not read")
    if set(length) <= {"S"}:
        return None
    channels = math.prod(length.values())
    if channels != in_chans:
        raise Unfit("other channels", f"a TIFF of {channels} channels on its pages, and in_chans={in_chans}")
    return series


def _read_series(series: "TiffPageSeries", in_chans: int) -> np.ndarray:
    """(H, W, C), with the channels in the order of the axes."""
    axes, shape = series.axes, series.shape
    height, width = (shape[axes.index(axis)] for axis in "YX")
    refuse_bomb(width, height)
    refuse_bytes(math.prod(shape) * series.dtype.itemsize)
    for page in series.pages:
        if page is not None:
            _refuse_inflation(page.aspage() if hasattr(page, "aspage") else page)
    values = _decompressed(series)
    last = [k for k, axis in enumerate(axes) if axis not in "YX"]
    order = [axes.index("Y"), axes.index("X"), *last]
    return np.ascontiguousarray(values.transpose(order).reshape(height, width, in_chans))


def _read_page(page: "TiffPage", data: bytes) -> np.ndarray:
    """(H, W, C). OpenCV decodes what tifffile cannot decompress, for example RGB with LZW."""
    assert page.dtype is not None  # decode_tiff leaves such pages to Pillow
    refuse_bomb(page.imagewidth, page.imagelength)
    refuse_bytes(page.imagewidth * page.imagelength * page.samplesperpixel * page.dtype.itemsize)
    if page.axes not in _INTERLEAVED:
        raise Unfit("other axes", f"a TIFF page with axes {page.axes}")
    _refuse_inflation(page)
    try:
        values = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return _read_page_by_opencv(page, data)
    if values.size != page.imagelength * page.imagewidth * page.samplesperpixel or values.ndim not in (2, 3):
        raise UnreadableImage("damaged", f"a page of shape {values.shape} that says {page.shape}")
    if values.ndim == 2:
        return values[:, :, None]
    return np.ascontiguousarray(values.transpose(1, 2, 0)) if page.axes == "SYX" else values


def _read_page_by_opencv(page: "TiffPage", data: bytes) -> np.ndarray:
    """Grey, or RGB with at most one more band: OpenCV returns these as stored, but applies the orientation."""
    of_colours = page.samplesperpixel in ((3, 4) if page.photometric == _RGB else (1,))
    if of_colours and page.dtype in (np.uint8, np.uint16):
        orientation = page.tags.get(274)
        values = turn(by_opencv(data), orientation.value if orientation else 1, back=True)
        if values.shape == (page.imagelength, page.imagewidth, page.samplesperpixel) and values.dtype == page.dtype:
            return values
    raise UnreadableImage("other compression", _needs_package(page))


def _needs_package(page: "TiffPage") -> str:
    compression = getattr(page.compression, "name", page.compression)  # a number that tifffile does not know
    return f"{page.samplesperpixel} bands compressed by {compression}; pip install imagecodecs"


def _decompressed(series: "TiffPageSeries") -> np.ndarray:
    try:
        return series.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise UnreadableImage("other compression", _needs_package(series.keyframe)) from None


def _refuse_inflation(page: "TiffPage | TiffFrame") -> None:
    """Refuses strips and tiles that exceed the size in the header, because tifffile expands them without limit."""
    if int(page.compression) not in (*_DEFLATE, *_LZMA):
        return
    if page.dtype is None:
        raise UnreadableImage("damaged", "a page with no known type of values")
    most = math.prod(page.chunks) * page.dtype.itemsize
    handle = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count == 0:
            continue
        handle.seek(offset)
        content = handle.read(count)
        if int(page.compression) in _LZMA:
            unpacked = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY).decompress(content, max_length=most + 1)
        else:
            unpacked = zlib.decompressobj().decompress(content, most + 1)
        if len(unpacked) > most:
            raise UnreadableImage("damaged", f"a strip or tile holds more than the {most} bytes that belong there")

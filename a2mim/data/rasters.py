"""Images that Pillow does not read in full: .npy arrays, TIFFs of many bands or more than 8 bits, 16-bit PNG.

Pillow cuts 16-bit RGB to its upper 8 bits without a word, and knows no more than four bands. OpenCV turns TIFFs by
their orientation without being asked, which is undone here.
"""

import io

import numpy as np

from a2mim.data.pixel_format import Unfit, UnreadableImage, fit_range, turn

MAX_PIXELS = 64_000_000  # a header that claims more is taken for a decompression bomb
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY = b"\x93NUMPY"
_PNG = b"\x89PNG\r\n\x1a\n"
_INTERLEAVED = ("YXS", "YX", "SYX")  # tifffile's names of the axes of one page


def refuse_bomb(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage("too large", f"{width}x{height} pixels, at most {MAX_PIXELS} are decoded")


def is_deep_png(data: bytes) -> bool:
    """Whether the header says 16 bits."""
    return data[:8] == _PNG and data[24:25] == b"\x10"


def decode_npy(data: bytes, in_chans: int, value_range) -> np.ndarray:
    """An array of (H, W), (H, W, in_chans) or (in_chans, H, W) -> (H, W, in_chans) uint8 or uint16.

    Where first and last axis would both do, the last is taken for the channels.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        if dtype.hasobject or dtype.kind not in "uifb":
            raise Unfit("other values", f"an array of {dtype}")
        if len(shape) in (2, 3):
            refuse_bomb(1, int(np.prod(shape, dtype=np.float64)) // in_chans)
        stream.seek(0)
        values = np.lib.format.read_array(stream, allow_pickle=False)
    except UnreadableImage:
        raise
    except (ValueError, EOFError, TypeError, SyntaxError) as error:
        raise UnreadableImage("damaged", f"{type(error).__name__}: {error}") from None
    return fit_range(_channels_last(values, in_chans), value_range)


def _channels_last(values: np.ndarray, in_chans: int) -> np.ndarray:
    pixels = values[:, :, None] if values.ndim == 2 else values
    if pixels.ndim == 3 and pixels.shape[2] != in_chans and pixels.shape[0] == in_chans:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != in_chans or 0 in pixels.shape:
        wanted = f"(H, W, {in_chans}) or ({in_chans}, H, W)"
        raise Unfit("other channels", f"an array of shape {values.shape}, and in_chans={in_chans} asks for {wanted}")
    return np.ascontiguousarray(pixels)


def decode_deep_png(data: bytes) -> np.ndarray:
    """(H, W, C) uint16, grey, grey + alpha, RGB or RGBA."""
    width, height = (int.from_bytes(data[k : k + 4], "big") for k in (16, 20))
    refuse_bomb(width, height)
    pixels = _by_opencv(data)
    grey_alpha = data[25:26] == b"\x04"  # which OpenCV gives as BGRA
    return pixels[:, :, [0, 3]] if grey_alpha and pixels.shape[2] == 4 else pixels


def decode_tiff(data: bytes, value_range) -> tuple[np.ndarray, bool] | None:
    """(H, W, C) uint8 or uint16 of the first page, as stored, and whether it is a picture; None leaves it to Pillow.

    A picture is of grey or RGB, with alpha or without; more bands are not, nor anything that has to be scaled.
    """
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            bands, kind = page.samplesperpixel, page.dtype
            picture = bands <= 4 and kind == np.uint16
            if kind is None or (kind.kind in "ub" and kind.itemsize == 1 and bands <= 4):
                return None
            refuse_bomb(page.imagewidth, page.imagelength)
            if page.axes not in _INTERLEAVED:
                raise UnreadableImage("other channels", f"a TIFF page with axes {page.axes}")
            values = _page(page, data)
            inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    except UnreadableImage:
        raise
    except Exception as error:  # tifffile raises nearly anything on damaged files
        raise UnreadableImage("damaged", f"{type(error).__name__}: {error}") from None
    if inverted and kind.kind == "u":
        values = np.iinfo(kind).max - values
    return fit_range(values, value_range), picture


def _page(page, data: bytes) -> np.ndarray:
    """(H, W, C). OpenCV where tifffile lacks the decompressor: LZW, say, of up to four bands."""
    try:
        values = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        if page.samplesperpixel > 4:
            hint = f"{page.samplesperpixel} bands compressed by {page.compression.name}; pip install imagecodecs"
            raise UnreadableImage("other compression", hint) from None
        orientation = page.tags.get(274)
        return turn(_by_opencv(data), orientation.value if orientation else 1, back=True)
    if values.ndim == 2:
        return values[:, :, None]
    return np.ascontiguousarray(values.transpose(1, 2, 0)) if page.axes == "SYX" else values


def _by_opencv(data: bytes) -> np.ndarray:
    """(H, W, C), of any depth, RGB in order."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise UnreadableImage("damaged", "OpenCV cannot decode it")
    if pixels.ndim == 2:
        return pixels[:, :, None]
    return np.ascontiguousarray(pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]) if pixels.shape[2] >= 3 else pixels

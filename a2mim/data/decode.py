"""Bytes to pixels.

JPEG is decoded by simplejpeg and the rest by Pillow; both give the same bits for JPEG. rasters.py and tiffs.py decode
what Pillow does not read in full. EXIF orientation is applied only on request, for every format. Of animations and of
files with several pages, the first image is used. Whatever a decoder raises becomes UnreadableImage: one image's fault.
"""

import warnings

import numpy as np

from a2mim.data import rasters, tiffs
from a2mim.data.names import escaped
from a2mim.data.pillow_images import decode_by_pillow, orientation_of
from a2mim.data.pixel_format import BITS, PixelFormat, Unfit, UnreadableImage, fit_depth, fit_picture, fit_range, turn
from a2mim.data.plain_files import MAX_BYTES
from a2mim.data.rasters import refuse_bomb

__all__ = ["LENIENT", "REDUCED", "PixelFormat", "Unfit", "UnreadableImage", "decode", "depth_of"]

LENIENT = "damaged, decoded all the same"  # counted like a fault, but the image is used
REDUCED = "16 bits reduced to 8"  # counted like a fault, but the image is used
FOREIGN, DAMAGED = "foreign", "damaged"
_JPEG = b"\xff\xd8"
_EIGHT_BITS = (b"GIF8", b"BM")  # the first bytes of formats that always have 8 bits
RGB = PixelFormat()


def decode(data: bytes, notes: list[str] | None = None, pixel_format: PixelFormat = RGB) -> np.ndarray:
    """Encoded image -> (H, W, form.in_chans) of form.dtype, writable and contiguous; raises UnreadableImage.

    Args:
        notes: receives LENIENT if a damaged image was decoded all the same, and REDUCED if bits were lost.
    """
    notes = [] if notes is None else notes
    pixels, turned = _decode(data, notes, pixel_format)
    if BITS[pixels.dtype] > pixel_format.bits:
        notes.append(REDUCED)
    pixels = fit_depth(pixels, pixel_format.bits)
    return turn(pixels, orientation_of(data)) if pixel_format.exif and not turned else pixels


def depth_of(data: bytes, pixel_format: PixelFormat = RGB) -> int:
    """Bits per value of one encoded image: 8 or 16. Raises UnreadableImage, or Unfit if the format does not fit."""
    by_header = _depth_by_header(data) if pixel_format.in_chans <= 4 else None
    return by_header or _depth_by_decoding(data, pixel_format)


def quick_depth_of(data: bytes, pixel_format: PixelFormat = RGB) -> int:
    """`depth_of` from the header alone for PNG; it does not check whether the image fits."""
    if rasters.is_png(data):
        return 16 if rasters.is_deep_png(data) else 8
    return depth_of(data, pixel_format)


def _depth_by_header(data: bytes) -> int | None:
    return 8 if data.startswith((_JPEG, *_EIGHT_BITS)) else None


def _depth_by_decoding(data: bytes, pixel_format: PixelFormat) -> int:
    return BITS[_decode(data, [], pixel_format)[0].dtype]


def _decode(data: bytes, notes: list[str], pixel_format: PixelFormat) -> tuple[np.ndarray, bool]:
    """((H, W, form.in_chans) uint8 or uint16, whether the orientation is already applied); raises UnreadableImage."""
    if not data:
        raise UnreadableImage("empty")
    if len(data) > MAX_BYTES:
        raise UnreadableImage("too large", f"{len(data):,} bytes, at most {MAX_BYTES:,} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what decoders warn about is checked, converted or counted here
            pixels, turned = _decode_by_kind(data, notes, pixel_format)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged data
        raise UnreadableImage("damaged", escaped(f"{type(error).__name__}: {error}")) from None
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise UnreadableImage("damaged", f"an image of shape {pixels.shape}")
    return pixels, turned


def _decode_by_kind(data: bytes, notes: list[str], pixel_format: PixelFormat) -> tuple[np.ndarray, bool]:
    if data.startswith(rasters.NPY):
        return fit_range(rasters.decode_npy(data, pixel_format.in_chans), pixel_format), True
    if data.startswith(_JPEG):
        decoded = _decode_jpeg(data, pixel_format.in_chans)
        if not isinstance(decoded, np.ndarray):
            notes += [LENIENT] if decoded == DAMAGED else []
            decoded = decode_by_pillow(data, pixel_format.in_chans)
        return fit_picture(decoded, pixel_format.in_chans), False
    if data.startswith(tiffs.MAGIC) and (tiff := tiffs.decode_tiff(data, pixel_format.in_chans)) is not None:
        pixels = fit_range(tiff.values, pixel_format)
        return (fit_picture(pixels, pixel_format.in_chans) if tiff.is_picture else pixels), False
    if rasters.is_deep(data):
        pixels = rasters.decode_deep(data)
    else:
        pixels = decode_by_pillow(data, pixel_format.in_chans)
        if pixels.dtype == np.uint8 and rasters.is_deep_avif(data):
            notes.append(REDUCED)
    return fit_picture(fit_range(pixels, pixel_format), pixel_format.in_chans), False


def _decode_jpeg(data: bytes, in_chans: int) -> np.ndarray | str:
    """Pixels, or why Pillow must decode: FOREIGN (CMYK, unusual colour spaces) or DAMAGED (libjpeg only warns)."""
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        refuse_bomb(width, height)
        if in_chans > 4:
            raise Unfit("other channels", f"a picture of {1 if space == 'Gray' else 3}, and in_chans={in_chans}")
        if space not in ("YCbCr", "RGB", "Gray"):
            simplejpeg.decode_jpeg(data, "CMYK")  # strict, unlike Pillow: it finds damage in these images too
            return FOREIGN
        return simplejpeg.decode_jpeg(data, "GRAY" if space == "Gray" and in_chans < 3 else "RGB")
    except UnreadableImage:
        raise
    except ValueError:
        return DAMAGED

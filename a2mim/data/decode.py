"""Bytes to pixels: RGB JPEG through simplejpeg, the rest through Pillow, but for what Pillow does not read in full
(rasters.py).

The first two agree bit for bit on JPEG. EXIF orientation is applied on request only, alike for every format; of an
animation or of several pages the first counts.
"""

import io
import warnings

import numpy as np

from a2mim.data import rasters
from a2mim.data.pixel_format import BITS, PixelFormat, Unfit, UnreadableImage, fit_depth, fit_picture, turn
from a2mim.data.rasters import refuse_bomb

__all__ = ["LENIENT", "REDUCED", "PixelFormat", "Unfit", "UnreadableImage", "decode", "depth_of"]

LENIENT = "damaged, decoded all the same"  # counted like a reason, but the image is shown
REDUCED = "16 bits reduced to 8"  # likewise
FOREIGN, DAMAGED = "foreign", "damaged"
_ORIENTATION = 274  # the EXIF tag
RGB = PixelFormat()


def decode(data: bytes, notes: list[str] | None = None, form: PixelFormat = RGB) -> np.ndarray:
    """Encoded image -> (H, W, form.in_chans) of form.dtype, writable and without gaps; raises UnreadableImage.

    Args:
        notes: gets LENIENT appended when a damaged image was decoded all the same, REDUCED when bits were lost.
    """
    pixels, turned = _decode(data, [] if notes is None else notes, form)
    if BITS[pixels.dtype] > form.bits and notes is not None:
        notes.append(REDUCED)
    pixels = fit_depth(pixels, form.bits)
    return turn(pixels, _orientation(data)) if form.exif and not turned else pixels


def depth_of(data: bytes, form: PixelFormat = RGB) -> int:
    """8 or 16: the bits a value of one encoded image; raises UnreadableImage, as Unfit where the form does not suit."""
    if data[:2] == b"\xff\xd8" and form.in_chans <= 4:
        return 8
    return BITS[_decode(data, [], form)[0].dtype]


def _decode(data: bytes, notes: list[str], form: PixelFormat) -> tuple[np.ndarray, bool]:
    """((H, W, form.in_chans), uint8 or uint16; whether its orientation is of no more concern)."""
    if not data:
        raise UnreadableImage("empty")
    if data[:6] == rasters.NPY:
        return rasters.decode_npy(data, form.in_chans, form.value_range), True
    if data[:2] == b"\xff\xd8":
        found = _decode_jpeg(data, form.in_chans)
        if isinstance(found, np.ndarray):
            return fit_picture(found, form.in_chans), False
        pixels = _decode_other(data)
        if found == DAMAGED:
            notes.append(LENIENT)
    elif data[:4] in rasters.TIFF and (found := rasters.decode_tiff(data, form.value_range)) is not None:
        pixels, picture = found
        if not picture:
            if pixels.shape[2] != form.in_chans:
                raise Unfit("other channels", f"a TIFF of {pixels.shape[2]}, and in_chans={form.in_chans}")
            return pixels, False
    elif rasters.is_deep_png(data):
        pixels = rasters.decode_deep_png(data)
    else:
        pixels = _decode_other(data)
    return fit_picture(pixels, form.in_chans), False


def _decode_jpeg(data: bytes, in_chans: int) -> np.ndarray | str:
    """Pixels, or why Pillow has to decide: FOREIGN (CMYK, odd colour spaces), or DAMAGED (libjpeg only warns)."""
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        refuse_bomb(width, height)
        if space not in ("YCbCr", "RGB", "Gray"):
            return FOREIGN
        return simplejpeg.decode_jpeg(data, "GRAY" if space == "Gray" and in_chans < 3 else "RGB")
    except UnreadableImage:
        raise
    except ValueError:
        return DAMAGED


def _decode_other(data: bytes) -> np.ndarray:
    """(H, W, 1 to 4) uint8, or uint16 where Pillow knows it: grey, with alpha, RGB, with alpha; as stored."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about what is checked or converted here anyway
            with Image.open(io.BytesIO(data)) as image:
                refuse_bomb(*image.size)
                orientation = image.getexif().get(_ORIENTATION, 1) if image.format == "TIFF" else 1
                return turn(_pixels_of(image), orientation, back=True)  # Pillow turns TIFFs when it loads them
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("not an image", f"{len(data)} bytes") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage("too large", str(error)) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise UnreadableImage("damaged", f"{type(error).__name__}: {error}") from None


def _pixels_of(image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
        return np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16)[:, :, None]
    if image.mode == "F":
        raise Unfit("other values", "floating-point pixels of a format that is not TIFF")
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"))[:, :, None]
    if image.mode in ("LA", "La"):
        return np.array(image.convert("LA"))
    alpha = image.mode in ("PA", "RGBA", "RGBa") or (image.mode == "P" and "transparency" in image.info)
    return np.array(image.convert("RGBA" if alpha else "RGB"))


def _orientation(data: bytes) -> int:
    """The EXIF orientation, 1 where there is none that can be read."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels are there; what says how to hold them is not
        return 1

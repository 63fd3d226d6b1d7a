"""Pillow images as pixels: one path for files, for items of a user's data set, and for re-encoding."""

from __future__ import annotations

import functools
import io
import struct
from typing import TYPE_CHECKING

import numpy as np

from a2mim.data.names import escaped
from a2mim.data.pixel_format import Unfit, UnreadableImage, turn
from a2mim.data.rasters import refuse_bomb

if TYPE_CHECKING:
    from PIL.Image import Image

# A closed list: some of Pillow's formats start other programs (EPS: Ghostscript) or read other files.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
ORIENTATION = 274  # the EXIF tag
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")  # chunks that do not change pixels


@functools.cache
def _known_formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def open_image(data: bytes) -> Image:
    """Opens an encoded file in one of FORMATS without decoding it; raises what Pillow raises."""
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=_known_formats())


def decode_by_pillow(data: bytes, in_chans: int) -> np.ndarray:
    """(H, W, 1 to 4) as stored: grey, grey + alpha, RGB or RGBA, see `pixels_of`; raises UnreadableImage."""
    from PIL import Image, UnidentifiedImageError

    try:
        with open_image(data) as image:
            refuse_bomb(*image.size)
            if in_chans > 4:
                raise Unfit("other channels", f"a picture of {len(image.getbands())}, and in_chans={in_chans}")
            orientation = image.getexif().get(ORIENTATION, 1) if image.format == "TIFF" else 1
            return turn(pixels_of(image), orientation, back=True)  # Pillow applies the orientation of TIFFs itself
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("not an image", f"{len(data)} bytes") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage("too large", str(error)) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        plain = without_text(data)
        if plain is not None:  # Pillow refuses an image with more than 1 MiB of text or colour profile
            return decode_by_pillow(plain, in_chans)
        raise UnreadableImage("damaged", escaped(f"{type(error).__name__}: {error}")) from None


def pixels_of(image: Image) -> np.ndarray:
    """A Pillow image of any mode as (H, W, 1 to 4) without rounding: uint8 or uint16; int32 and float32 are not
    converted, because `value_range` scales them later.
    """
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image)[:, :, None]
        whole = mode != "F" and (values.size == 0 or (values.min() >= 0 and values.max() <= 65535))
        return values.astype(np.uint16) if whole else np.array(values)
    if mode in ("1", "L"):
        return np.array(image.convert("L"))[:, :, None]
    if mode in ("LA", "La"):
        return np.array(image.convert("LA"))
    alpha = mode in ("PA", "RGBA", "RGBa") or (mode == "P" and "transparency" in image.info)
    return np.array(image.convert("RGBA" if alpha else "RGB"))


def orientation_of(data: bytes) -> int:
    """The EXIF orientation; 1 if there is none or it cannot be read."""
    for content in (data, without_text(data)):
        try:
            with open_image(content or b"") as image:
                return image.getexif().get(ORIENTATION, 1)
        except Exception:  # only the orientation is damaged; the pixels can be used
            continue
    return 1


def without_text(data: bytes) -> bytes | None:
    """A PNG without its texts and its colour profile; None if it has none, or is no PNG."""
    if not data.startswith(_PNG):
        return None
    kept, start = [_PNG], len(_PNG)
    while start + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        stop = start + 12 + length
        if data[start + 4 : start + 8] not in _PNG_TEXT:
            kept.append(data[start:stop])
        start = stop
    plain = b"".join(kept)
    return plain if len(plain) < len(data) else None

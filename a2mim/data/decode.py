"""Bytes to pixels: RGB JPEG through simplejpeg, everything else through Pillow, always (H, W, 3) uint8.

The two agree bit for bit on JPEG. EXIF orientation is not applied, as in Pillow and torchvision.
"""

import io
import warnings

import numpy as np

MAX_PIXELS = 64_000_000  # a header that claims more is taken for a decompression bomb
LENIENT = "damaged, decoded all the same"  # counted like a reason, but the image is shown
FOREIGN, DAMAGED = "foreign", "damaged"


class UnreadableImage(ValueError):
    """One image cannot be decoded. `reason` is one of few words, fit for counting; the message has the details."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason + (f": {detail}" if detail else ""))
        self.reason, self.detail = reason, detail

    def __reduce__(self):
        return UnreadableImage, (self.reason, self.detail)


def decode(data: bytes, notes: list[str] | None = None) -> np.ndarray:
    """Encoded image -> (H, W, 3) uint8 RGB; raises UnreadableImage.

    Args:
        notes: gets LENIENT appended when a damaged image was decoded all the same.
    """
    if not data:
        raise UnreadableImage("empty")
    if data[:2] != b"\xff\xd8":
        return _decode_other(data)
    found = _decode_jpeg(data)
    if isinstance(found, np.ndarray):
        return found
    pixels = _decode_other(data)
    if found == DAMAGED and notes is not None:
        notes.append(LENIENT)
    return pixels


def _decode_jpeg(data: bytes) -> np.ndarray | str:
    """Pixels, or why Pillow has to decide: FOREIGN (CMYK, odd colour spaces), or DAMAGED (libjpeg only warns)."""
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        _refuse_bomb(width, height)
        return simplejpeg.decode_jpeg(data) if space in ("YCbCr", "RGB", "Gray") else FOREIGN
    except UnreadableImage:
        raise
    except ValueError:
        return DAMAGED


def _decode_other(data: bytes) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about what is checked or converted here anyway
            with Image.open(io.BytesIO(data)) as image:
                _refuse_bomb(*image.size)
                return _to_rgb(image)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("not an image", f"{len(data)} bytes") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage("too large", str(error)) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise UnreadableImage("damaged", f"{type(error).__name__}: {error}") from None


def _to_rgb(image) -> np.ndarray:
    """16-bit gray is scaled by 1 / 257, where Pillow clips it to white; alpha is dropped, as `convert` does."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        gray = values if image.mode == "F" else values / 257
        return np.repeat(np.rint(gray.clip(0, 255)).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage("too large", f"{width}x{height} pixels, at most {MAX_PIXELS} are decoded")

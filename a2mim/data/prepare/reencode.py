"""Makes an image smaller once, so that training does not decode it at full size in every epoch."""

import io
import warnings

from a2mim.data.pillow_images import open_image

MODES = ("L", "RGB", "YCbCr", "CMYK", "1", "P")  # Pillow's modes that JPEG can store
_ORIENTATION = 0x0112  # EXIF
_MAX_PIXELS = 64_000_000
KEPT_SMALL, KEPT_KIND, KEPT_UNREADABLE = "already small", "not 8-bit grey or RGB", "cannot be decoded"


def reencode(data: bytes, short_side: int, quality: int) -> bytes | str:
    """A JPEG with a short side of `short_side` pixels, or the reason why the image is kept.

    Kept are images that are not larger (a second encoding would only lose quality), images that JPEG cannot store (16
    bits, alpha, many bands, several frames), and damaged images, which a training run then reports. The resize is
    Lanczos, the encoding 4:2:0. The EXIF orientation and the colour profile are copied.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks below handle what Pillow warns about
            with open_image(data) as image:
                if image.mode not in MODES or "transparency" in image.info or getattr(image, "n_frames", 1) > 1:
                    return KEPT_KIND
                width, height = image.size
                if min(width, height) <= short_side:
                    return KEPT_SMALL
                if width * height > _MAX_PIXELS:
                    return KEPT_KIND
                orientation = image.getexif().get(_ORIENTATION, 1) if image.format != "TIFF" else 1
                profile = image.info.get("icc_profile")
                small = image.convert("L" if image.mode in ("L", "1") else "RGB")
                scale = short_side / min(width, height)
                small = small.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    except Exception:  # Pillow's decoders raise nearly anything on damaged data
        return KEPT_UNREADABLE
    exif = Image.Exif()
    if orientation != 1:
        exif[_ORIENTATION] = orientation
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=quality, exif=exif, icc_profile=None if image.mode == "CMYK" else profile)
    return encoded.getvalue()

"""Images that Pillow does not read in full: .npy arrays, and PNG, PPM and JPEG 2000 with more than 8 bits.

Pillow reduces 16-bit RGB to the upper 8 bits without a warning.
"""

import io
import math
import re
import struct

import numpy as np

from a2mim.data.pixel_format import Unfit, UnreadableImage

MAX_PIXELS = 64_000_000  # a header that claims more is treated as a decompression bomb
MAX_DECODED = 1 << 30  # greatest size in bytes of one decoded image
NPY = b"\x93NUMPY"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNM = re.compile(rb"P[2356]" + 3 * rb"\s+(?:#[^\n]*\n\s*)*(\d{1,9})" + rb"\s")  # width, height, greatest value
_JP2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_LONGEST_HEADER = 4096  # bytes that are searched for size and depth
_NPY_VERSIONS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def refuse_bomb(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage("too large", f"{width}x{height} pixels, at most {MAX_PIXELS} are decoded")


def refuse_bytes(count: int) -> None:
    """Refuses an image that would need more than MAX_DECODED bytes."""
    if count > MAX_DECODED:
        raise UnreadableImage("too large", f"{count:,} bytes when decoded, at most {MAX_DECODED:,} are")


def is_png(data: bytes) -> bool:
    return data.startswith(_PNG)


def is_deep_png(data: bytes) -> bool:
    """True for a PNG with 16 bits per value, by its header."""
    return is_png(data) and data[24:25] == b"\x10"


def is_deep_avif(data: bytes) -> bool:
    """True for an AVIF with 10 or 12 bits, by its header; Pillow rounds these to 8."""
    start = data.find(b"av1C", 0, _LONGEST_HEADER)
    return data[4:12] == b"ftypavif" and 0 <= start < len(data) - 6 and bool(data[start + 6] & 0x40)


def is_deep(data: bytes) -> bool:
    """True for a PNG, PNM or colour JPEG 2000 with more than 8 bits per value."""
    return is_deep_png(data) or _deep_pnm_size(data) is not None or _deep_jp2_size(data) is not None


def decode_deep(data: bytes) -> np.ndarray:
    """(H, W, C) uint16 as stored: grey, grey + alpha, RGB or RGBA."""
    if is_deep_png(data):
        return _decode_deep_png(data)
    refuse_bomb(*(_deep_pnm_size(data) or _deep_jp2_size(data) or (0, 0)))
    return by_opencv(data)


def _deep_pnm_size(data: bytes) -> tuple[int, int] | None:
    header = _PNM.match(data[:_LONGEST_HEADER]) if data[:1] == b"P" else None
    if header is None or int(header[3]) < 256:
        return None
    return int(header[1]), int(header[2])


def _deep_jp2_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG 2000 file with 3 or 4 components of over 8 bits. Pillow reads grey ones in full."""
    start = data.find(b"ihdr", 0, _LONGEST_HEADER)
    if not data.startswith(_JP2) or not 0 <= start < len(data) - 15:
        return None
    height, width, components, bits = struct.unpack_from(">IIHB", data, start + 4)
    return (width, height) if components in (3, 4) and 7 < bits & 0x7F < 16 else None


def decode_npy(data: bytes, in_chans: int) -> np.ndarray:
    """An array (H, W), (H, W, in_chans) or (in_chans, H, W) -> (H, W, in_chans) of the same type.

    If both the first and the last axis could be the channels, the last one is used. A header that claims more values
    than the file holds is refused.
    """
    stream = io.BytesIO(data)
    read = _NPY_VERSIONS.get(np.lib.format.read_magic(stream))
    if read is None:
        raise UnreadableImage("damaged", "a version of .npy other than 1.0 and 2.0")
    shape, in_columns, dtype = read(stream)
    if dtype.hasobject or dtype.kind not in "uifb":
        raise Unfit("other values", f"an array of {dtype}")
    if len(shape) not in (2, 3) or in_chans not in ((1,) if len(shape) == 2 else (shape[0], shape[2])):
        raise _other_shape(shape, in_chans)
    if min(shape) < 1:
        raise _other_shape(shape, in_chans)
    count = math.prod(shape)
    refuse_bomb(1, count // in_chans)
    refuse_bytes(count * dtype.itemsize)
    start = stream.tell()
    if len(data) - start < count * dtype.itemsize:
        raise UnreadableImage(
            "damaged", f"{len(data) - start} bytes of values, its header says {count * dtype.itemsize}"
        )
    values = np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if in_columns else "C")
    values = values.astype(dtype.newbyteorder("="))
    return _channels_last(values, in_chans)


def _other_shape(shape: tuple[int, ...], in_chans: int) -> Unfit:
    wanted = f"(H, W, {in_chans}) or ({in_chans}, H, W)"
    return Unfit("other channels", f"an array of shape {shape}, and in_chans={in_chans} asks for {wanted}")


def _channels_last(values: np.ndarray, in_chans: int) -> np.ndarray:
    pixels = values[:, :, None] if values.ndim == 2 else values
    if pixels.shape[2] != in_chans:
        pixels = pixels.transpose(1, 2, 0)
    return np.ascontiguousarray(pixels)


def _decode_deep_png(data: bytes) -> np.ndarray:
    width, height = (int.from_bytes(data[k : k + 4], "big") for k in (16, 20))
    refuse_bomb(width, height)
    pixels = by_opencv(data)
    grey_alpha = data[25:26] == b"\x04"  # OpenCV returns it as BGRA
    return pixels[:, :, [0, 3]] if grey_alpha and pixels.shape[2] == 4 else pixels


def by_opencv(data: bytes) -> np.ndarray:
    """(H, W, C) of any depth, in RGB order."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise UnreadableImage("damaged", "OpenCV cannot decode it")
    if pixels.ndim == 2:
        return pixels[:, :, None]
    return np.ascontiguousarray(pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]) if pixels.shape[2] >= 3 else pixels

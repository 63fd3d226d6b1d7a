"""The pixel format of a data set: channels, depth and orientation of each image before it is cropped.

Stored values become uint8 or uint16. Their whole range stands for 0..1; mean and std are in units of that range. Values
are rounded to 8 bits only if the data set has 8 bits, and then the image is counted.
"""

from dataclasses import dataclass

import numpy as np

BITS: dict[np.dtype, int] = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16}
DTYPES = {bits: dtype for dtype, bits in BITS.items()}
_VALUES_AT_ONCE = 1 << 20
_UNTURNED = {6: 8, 8: 6}  # EXIF orientations that are not their own inverse


class UnreadableImage(ValueError):
    """One image cannot be decoded. `reason` is a short phrase for counting; the message has the details."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason + (f": {detail}" if detail else ""))
        self.reason, self.detail = reason, detail

    def __reduce__(self):
        return UnreadableImage, (self.reason, self.detail)


class Unfit(UnreadableImage):
    """The image is not damaged, but does not fit the pixel format."""

    def __reduce__(self):
        return Unfit, (self.reason, self.detail)


@dataclass(frozen=True)
class PixelFormat:
    """How the images of a data set leave the decoder.

    Args:
        in_chans: channels. Pictures are converted to 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha). Arrays and
            TIFFs with other bands must have exactly this number.
        bits: bits per value, 8 or 16.
        exif: apply each image's EXIF orientation, whatever its file format.
        value_range: (least, greatest) value of arrays and TIFFs that are neither uint8 nor uint16. Values are scaled
            from this range to 16 bits and clipped. None refuses such images.
        nodata: the stored value of pixels without a measurement, in arrays, TIFFs and other images; NaN stands for NaN.
            None: there is no such value, and images with NaN are refused.
        fill: replaces `nodata`, in stored units. None: the least value of `value_range`, or 0 without a range.
    """

    in_chans: int = 3
    bits: int = 8
    exif: bool = False
    value_range: tuple[float, float] | None = None
    nodata: float | None = None
    fill: float | None = None

    def __post_init__(self):
        if self.in_chans < 1:
            raise ValueError(f"in_chans={self.in_chans} must be at least 1")
        if self.bits not in DTYPES:
            raise ValueError(f"bits={self.bits} must be 8 or 16")
        if self.value_range is not None and not (
            len(self.value_range) == 2 and -np.inf < self.value_range[0] < self.value_range[1] < np.inf
        ):
            raise ValueError(f"value_range={self.value_range} must be (least, greatest), finite and least first")
        if self.fill is not None and self.nodata is None:
            raise ValueError(f"fill={self.fill} needs nodata, the value that it replaces")
        if self.fill is not None and not np.isfinite(self.fill):
            raise ValueError(f"fill={self.fill} must be finite")

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[self.bits]


def fit_depth(pixels: np.ndarray, bits: int) -> np.ndarray:
    """uint8 or uint16 -> the dtype of `bits`. 255 becomes exactly 65,535; 16 bits are rounded to the nearest 8."""
    if BITS[pixels.dtype] == bits:
        return pixels
    if bits == 16:
        return pixels.astype(np.uint16) * np.uint16(257)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def fit_picture(pixels: np.ndarray, in_chans: int) -> np.ndarray:
    """(H, W, 1 to 4), grey, grey + alpha, RGB or RGBA -> (H, W, in_chans). A missing alpha becomes opaque; an alpha
    that is not wanted is dropped.
    """
    channels = pixels.shape[2]
    if channels == in_chans:
        return pixels
    if in_chans > 4 or channels > 4:
        raise Unfit("other channels", f"a picture of {channels}, and in_chans={in_chans}")
    colours = pixels[:, :, :1] if channels < 3 else pixels[:, :, :3]
    if in_chans < 3:
        colours = colours if channels < 3 else _luminance(colours)
    else:
        colours = np.repeat(colours, 3, axis=2) if channels < 3 else colours
    if in_chans in (1, 3):
        return np.ascontiguousarray(colours)
    opaque = np.full((*pixels.shape[:2], 1), np.iinfo(pixels.dtype).max, pixels.dtype)
    return np.concatenate([colours, opaque if channels in (1, 3) else pixels[:, :, -1:]], axis=2)


def _luminance(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601, in Pillow's integers: (H, W, 3) -> (H, W, 1)."""
    weighted = pixels.astype(np.uint64) @ np.array([19595, 38470, 7471], np.uint64)
    return ((weighted + 0x8000) >> np.uint64(16)).astype(pixels.dtype)[:, :, None]


def fit_range(values: np.ndarray, pixel_format: PixelFormat) -> np.ndarray:
    """(H, W, C) of any real type -> uint8 or uint16. These two are kept; others are scaled from `value_range` to 16
    bits.

    `nodata` is replaced by `fill` first. Raises Unfit if the range is missing, UnreadableImage for NaN and infinity.
    """
    if values.dtype in BITS:
        return _filled(values, pixel_format) if pixel_format.nodata is not None else values
    if pixel_format.value_range is None:
        raise Unfit("other values", f"{values.dtype}, which needs value_range, the least and the greatest value")
    scaled = np.empty(values.shape, np.uint16)
    rows = max(1, _VALUES_AT_ONCE // max(1, values[0].size if len(values) else 1))
    for start in range(0, len(values), rows):
        scaled[start : start + rows] = _scaled(values[start : start + rows].astype(np.float64), pixel_format)
    return scaled


def _scaled(values: np.ndarray, pixel_format: PixelFormat) -> np.ndarray:
    assert pixel_format.value_range is not None  # the caller refuses such values without a range
    low, high = pixel_format.value_range
    if pixel_format.nodata is not None:
        hidden = np.isnan(values) if np.isnan(pixel_format.nodata) else values == pixel_format.nodata
        values = np.where(hidden, low if pixel_format.fill is None else pixel_format.fill, values)
    if not np.isfinite(values).all():
        hint = (
            "set data.nodata=nan where NaN stands for no data"
            if pixel_format.nodata is None
            else "beside the nodata value"
        )
        raise UnreadableImage("not finite", f"it holds NaN or infinity; {hint}")
    return np.rint(((values - low) / (high - low)).clip(0, 1) * 65535)


def _filled(values: np.ndarray, pixel_format: PixelFormat) -> np.ndarray:
    fill = 0 if pixel_format.fill is None else pixel_format.fill
    if not 0 <= fill <= np.iinfo(values.dtype).max:
        raise Unfit("other values", f"{values.dtype}, in which fill={fill:g} cannot be stored")
    return np.where(values == pixel_format.nodata, values.dtype.type(fill), values)


def turn(pixels: np.ndarray, orientation: int, back: bool = False) -> np.ndarray:
    """Applies the EXIF orientation 1 to 8 to (H, W, C), or undoes it with `back`; other numbers change nothing."""
    if back:
        orientation = _UNTURNED.get(orientation, orientation)
    turned = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }.get(orientation, lambda a: a)(pixels)
    return np.ascontiguousarray(turned)

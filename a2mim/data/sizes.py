"""How large the images of a data set are, from the headers of some of them."""

from __future__ import annotations

import contextlib
import time
import warnings

import numpy as np

from a2mim.data.dataset import ImageDataset
from a2mim.data.decode import decode
from a2mim.data.pillow_images import open_image, orientation_of
from a2mim.data.pixel_format import PixelFormat, UnreadableImage

LOOKED_AT, SECONDS = 64, 2.0  # images and time, at most
_ON_THEIR_SIDE = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


def sizes_of(dataset: ImageDataset) -> dict[str, int | list[int]]:
    """Heights and widths of some images, spread over those that can be read quickly.

    Returns:
        "looked_at": how many images; "least", "median", "greatest": [height, width], each taken over all images, in
        pixels. {} where no image could be read, and for data sets from Python: reading one of their items may change
        what they return later.
    """
    if dataset.stream or dataset.promise or not len(dataset):
        return {}
    near, found = min(len(dataset), getattr(dataset.store, "nearby", len(dataset))), []
    until = time.monotonic() + SECONDS
    for i in np.unique(np.linspace(0, near - 1, LOOKED_AT).astype(np.int64)).tolist():
        with contextlib.suppress(UnreadableImage, OSError):  # the loader counts these, or ends the run
            found.append(size_of(dataset.store.content(i), dataset.pixel_format))
        if time.monotonic() > until:
            break
    if not found:
        return {}
    sizes = np.array(found)
    statistics = {"least": sizes.min(0), "median": np.median(sizes, axis=0).round(), "greatest": sizes.max(0)}
    return {"looked_at": len(found), **{name: [int(side) for side in value] for name, value in statistics.items()}}


def size_of(content: bytes | np.ndarray, pixel_format: PixelFormat) -> tuple[int, int]:
    """(height, width) of what a store returns, as it is decoded. Raises UnreadableImage."""
    if isinstance(content, np.ndarray):
        return content.shape[0], content.shape[1]
    sides = _by_header(content)
    if sides is None:
        pixels = decode(content, pixel_format=pixel_format)
        return pixels.shape[0], pixels.shape[1]
    turned = pixel_format.exif and orientation_of(content) in _ON_THEIR_SIDE
    return sides[::-1] if turned else sides


def _by_header(content: bytes) -> tuple[int, int] | None:
    """(height, width) as Pillow sees it; None for TIFF, whose planes only the decoder knows, and for what is foreign
    to Pillow or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an image that is too large is refused when it is decoded
            with open_image(content) as image:
                return None if image.format == "TIFF" else (image.height, image.width)
    except Exception:  # Pillow raises nearly anything on damaged data
        return None

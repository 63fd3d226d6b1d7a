"""One item of a user's own data set or pipeline: its image and its label.

An item is an image, a tuple (image, label, …), or a dictionary. A dictionary has the image under "image", "img" or a
suffix such as "jpg", and the label under "label", "cls", "target" or "json". An image is encoded bytes, a Pillow image
of any mode, or uint8 or uint16 pixels: an array (H, W) or (H, W, C), or a tensor (C, H, W). Do not apply ToTensor or
Normalize to it.
"""

from collections.abc import Mapping

import numpy as np

from a2mim.data.names import escaped, whole_number
from a2mim.data.pillow_images import pixels_of
from a2mim.data.pixel_format import BITS, UnreadableImage
from a2mim.data.rasters import refuse_bomb
from a2mim.data.walk import PICTURES

_IMAGES = ("image", "img", *PICTURES)
_LABELS = ("label", "cls", "target")


def image_and_label(item: object) -> tuple[bytes | np.ndarray, int]:
    """An item's image, as a store returns it, and its label or -1; ValueError says what the item holds instead."""
    image, label = parts_of(item)
    return _content(image), label_number(label)


def parts_of(item: object) -> tuple[object, object]:
    """(image, label or None) of an item, not converted."""
    image, label = item, None
    if isinstance(item, Mapping):
        image = next((item[name] for name in _IMAGES if name in item), None)
        label = next((item[name] for name in _LABELS if name in item), None)
        if label is None and isinstance(item.get("json"), Mapping):
            label = item["json"].get("label")
        if image is None:
            raise ValueError(f"an item has {', '.join(map(str, item))} and no image; call it 'image'")
    elif isinstance(item, tuple | list):
        image, label = item[0], item[1] if len(item) > 1 else None
    return image, label


def _content(image) -> bytes | np.ndarray:
    if isinstance(image, bytes):
        return image
    if hasattr(image, "convert") and hasattr(image, "mode"):
        return _of_pillow(image)
    is_tensor = hasattr(image, "permute") and image.ndim == 3
    pixels = image.permute(1, 2, 0).numpy() if is_tensor else np.asarray(image)
    if pixels.dtype not in BITS or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError(
            f"an image is {type(image).__name__} of {pixels.dtype} {pixels.shape}; give bytes, a Pillow image, or uint8"
            " or uint16 (H, W, C): without ToTensor or Normalize, which happen later on the device"
        )
    return np.ascontiguousarray(_with_channels(pixels))


def _of_pillow(image) -> np.ndarray:
    """Pixels of a Pillow image. Pillow may read the file only now."""
    refuse_bomb(*image.size)
    try:
        return pixels_of(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise UnreadableImage("damaged", escaped(f"{type(error).__name__}: {error}")) from None


def _with_channels(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def label_number(label: object) -> int:
    """The label as a number from an int, bytes, text or a tensor of one; -1 for anything else, such as a caption."""
    number = int(label) if isinstance(label, bool | np.bool_) else whole_number(label)
    return -1 if number is None or number < 0 else number

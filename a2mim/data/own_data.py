"""Data sets and pipelines that a user has written, with fewer promises than for what is opened by name.

- **Anything with `len` and `[i]`** (a torch map-style Dataset): order, resume and the number of workers are exact as
  long as item i is the same image each time. What it is made of is not seen: the fingerprint knows its length and
  labels only, so a changed set of the same length is not refused. Random transforms of its own are not replayed.
- **Anything that can only be iterated** (`webdataset.WebDataset`, an IterableDataset): see data/streams.py.

An item is an image, a tuple (image, label, …), or a dictionary with an image under "image", "img" or a suffix such as
"jpg", and a label under "label", "cls", "target" or "json". An image is encoded bytes, a Pillow image, or uint8 or
uint16: an array (H, W) or (H, W, C), or a tensor (C, H, W). Give it as it is, without ToTensor or Normalize.
"""

from collections.abc import Mapping, Sized

import numpy as np
from torch.utils.data import IterableDataset

from a2mim.data.dataset import ImageDataset
from a2mim.data.folder import SUFFIXES
from a2mim.data.keyed import key_of
from a2mim.data.pixel_format import BITS, UnreadableImage

PROMISE = "your own data set, whose images are taken to be the same each time"
_IMAGES = ("image", "img", *SUFFIXES)
_LABELS = ("label", "cls", "target")
_PLAIN_MODES = ("L", "LA", "RGB", "RGBA")  # of Pillow


def open_own(source) -> ImageDataset:
    """Opens an object; ValueError when it is none of the above."""
    if not isinstance(source, IterableDataset) and hasattr(source, "__getitem__") and isinstance(source, Sized):
        return _open_items(source)
    if hasattr(source, "__iter__"):
        from a2mim.data.streams import open_stream

        return open_stream(source)
    raise ValueError(
        f"a {type(source).__name__} is no data: give a path, a URL, a list of them, or a data set with len() and [i]"
    )


def _open_items(source) -> ImageDataset:
    if not len(source):
        raise ValueError(f"the {type(source).__name__} has no items")
    image_and_label(source[0])  # a mistake in its form is told before anything starts
    keys = np.array([key_of(f"own/{i}") for i in range(len(source))], np.uint64)
    classes = getattr(source, "classes", None)
    names = [str(name) for name in classes] if isinstance(classes, list | tuple) else None
    dataset = ImageDataset(ItemStore(source), type(source).__name__, keys, _labels(source), [len(source)], names)
    dataset.promise = PROMISE
    return dataset


class ItemStore:
    """Images that a user's data set makes."""

    def __init__(self, source):
        self.source = source

    def content(self, i: int) -> bytes | np.ndarray:
        try:
            item = self.source[i]
        except Exception as error:  # whatever their code may raise
            raise UnreadableImage("no item", f"{type(error).__name__}: {error}") from None
        return image_and_label(item)[0]

    def name(self, i: int) -> str:
        return f"{type(self.source).__name__}[{i}]"


def image_and_label(item) -> tuple[bytes | np.ndarray, int]:
    """What a store gives of an item's image, and its label or -1; ValueError naming what was found instead."""
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
    return _content(image), _number(label)


def _content(image) -> bytes | np.ndarray:
    if isinstance(image, bytes):
        return image
    if hasattr(image, "convert") and hasattr(image, "mode"):
        return _with_channels(np.asarray(image if image.mode in _PLAIN_MODES else image.convert("RGB")))
    is_tensor = hasattr(image, "permute") and image.ndim == 3
    pixels = image.permute(1, 2, 0).numpy() if is_tensor else np.asarray(image)
    if pixels.dtype not in BITS or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError(
            f"an image is {type(image).__name__} of {pixels.dtype} {pixels.shape}; give bytes, a Pillow image, or uint8"
            " or uint16 (H, W, C): without ToTensor or Normalize, which happen later on the device"
        )
    return np.ascontiguousarray(_with_channels(pixels))


def _with_channels(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _number(label) -> int:
    """A whole number, also as bytes, text or a tensor of one; -1 for anything else: captions and the like."""
    try:
        return int(label)
    except (TypeError, ValueError, RuntimeError):
        return -1


def _labels(source) -> np.ndarray:
    """`targets` or `labels`, as torchvision's data sets have them; to read each item for its label would take hours."""
    for name in ("targets", "labels"):
        found = getattr(source, name, None)
        if found is not None and not callable(found) and isinstance(found, Sized) and len(found) == len(source):
            return np.array([_number(label) for label in found], np.int64)
    return np.full(len(source), -1, np.int64)

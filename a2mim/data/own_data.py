"""Data sets and pipelines that a user has written, with fewer promises than for what is opened by name.

- **Anything with `len` and `[i]`** (a torch map-style Dataset): order, resume and the number of workers are exact as
  long as item i is the same image each time. What it is made of is not seen: the fingerprint knows its length and
  labels only, so a changed set of the same length is not refused. Random transforms of its own are not replayed.
- **Anything that can only be iterated** (`webdataset.WebDataset`, an IterableDataset): see data/streams.py.

What an item may be stands in data/items.py.
"""

from collections.abc import Sized

import numpy as np
from torch.utils.data import IterableDataset

from a2mim.data.dataset import ImageDataset
from a2mim.data.items import image_and_label, label_number
from a2mim.data.keyed import key_of
from a2mim.data.pixel_format import UnreadableImage
from a2mim.data.streams import open_stream

PROMISE = "your own data set, whose images are taken to be the same each time"


def open_own(source) -> ImageDataset:
    """Opens an object; ValueError when it is none of the above."""
    if not isinstance(source, IterableDataset) and hasattr(source, "__getitem__") and isinstance(source, Sized):
        return _open_items(source)
    if hasattr(source, "__iter__"):
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


def _labels(source) -> np.ndarray:
    """`targets` or `labels`, as torchvision's data sets have them; to read each item for its label would take hours."""
    for name in ("targets", "labels"):
        found = getattr(source, name, None)
        if found is not None and not callable(found) and isinstance(found, Sized) and len(found) == len(source):
            return np.array([label_number(label) for label in found], np.int64)
    return np.full(len(source), -1, np.int64)

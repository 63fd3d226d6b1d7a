"""Data sets and pipelines that a user has written. They come with fewer guarantees than sources opened by name.

- **Objects with `len` and `[i]`** (a map-style Dataset of torch): order, resume and the number of workers are exact, if
  item i is the same image each time. The content is not checked: the fingerprint covers only the length and the
  labels, so a changed set of the same length is accepted. The set's own random transforms are not replayed.
- **Objects that can only be iterated** (`webdataset.WebDataset`, an IterableDataset): see data/streams.py.

data/items.py says what an item may be.
"""

import functools
from collections.abc import Sized

import numpy as np
from torch.utils.data import IterableDataset

from a2mim.data.dataset import ImageDataset
from a2mim.data.items import image_and_label, parts_of
from a2mim.data.keyed import key_of
from a2mim.data.own_labels import class_names_of, labels_outside, numbered, read_labels
from a2mim.data.pixel_format import UnreadableImage
from a2mim.data.streams import open_stream

PROMISE = "your own data set, whose images are taken to be the same each time"


def open_own(source) -> ImageDataset:
    """Opens a user's object; ValueError if it is neither of the two kinds above."""
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
    image, label = parts_of(source[0])
    image_and_label(image)  # raises now if the item has a wrong type, before anything starts
    keys = np.array([key_of(f"own/{i}") for i in range(len(source))], np.uint64)
    outside = labels_outside(source)
    labels, names, odd = numbered(outside) if outside is not None else (np.full(len(source), -1, np.int64), None, 0)
    names = class_names_of(source) or names
    dataset = ImageDataset(ItemStore(source), type(source).__name__, keys, labels, [len(source)], names)
    dataset.promise, dataset.odd_labels = PROMISE, odd
    if outside is None and label is not None:
        dataset.label_reader = functools.partial(read_labels, source)
    return dataset


class ItemStore:
    """Images from a user's data set."""

    def __init__(self, source):
        self.source = source

    def content(self, i: int) -> bytes | np.ndarray:
        try:
            item = self.source[i]
        except Exception as error:  # the user's code may raise anything
            raise UnreadableImage("no item", f"{type(error).__name__}: {error}") from None
        return image_and_label(item)[0]

    def name(self, i: int) -> str:
        return f"{type(self.source).__name__}[{i}]"

"""Indexed images: the one type that loaders read, whatever the images are stored in.

A store knows where images lie and answers two questions, `content(i)` and `name(i)`; what the bytes mean is decided
here. It must survive pickling (spawned workers) and forking. Everything that the order and the randomness depend on
stands here, as arrays.
"""

import dataclasses
import functools
import hashlib
from typing import Protocol

import numpy as np

from a2mim.data.decode import decode, depth_of
from a2mim.data.names import escaped
from a2mim.data.pixel_format import BITS, PixelFormat, Unfit, UnreadableImage, fit_depth, fit_picture

LOOKED_AT = 4  # images, when the first ones cannot be read


class Store(Protocol):
    """Where the images are. A store may also have `will_need(ids)`, told before ids (N,) int64 are asked for."""

    def content(self, i: int) -> bytes | np.ndarray:
        """The encoded image, or its pixels (H, W, C) where these are what is stored; raises UnreadableImage when this
        one image is at fault.
        """

    def name(self, i: int) -> str:
        """What a person would look for: a path, or shard and member."""


class ImageDataset:
    """Images by number.

    Args:
        store: where the pixels are.
        title: the source, as the user named it.
        keys: (N,) uint64, one per image, independent of where the data lies: what random crops are keyed by.
        labels: (N,) int64, -1 = none.
        shard_sizes: images in each shard, in order; a folder is one shard.
        class_names: name of label 0, 1, ..., or None.
        splits: the splits that the source has; empty when there is but one set, returned for every split.
        duplicates: images left out because an earlier one has their key.

    `form` says what the pixels are brought to; `open_dataset` sets it. `skipped` names the shards that the user chose
    to go on without, `incomplete` counts samples without an image, `unchecked` shards indexed by DALI's word.
    """

    form = PixelFormat()
    skipped: tuple[str, ...] = ()
    incomplete = unchecked = odd_labels = lost = 0
    label_fault = ""
    passed_over = ""
    promise = ""  # what does not hold for it, in the user's words; see own_data.py
    stream = None  # what is trained on, when the images here are only its first ones; see streams.py

    def __init__(self, store: Store, title: str, keys, labels, shard_sizes, class_names=None, splits=(), duplicates=0):
        self.store, self.title = store, title
        self.keys = np.asarray(keys, np.uint64)
        self.labels = np.asarray(labels, np.int64)
        self.shard_sizes = np.asarray(shard_sizes, np.int64)
        self.class_names, self.splits, self.duplicates = class_names, tuple(splits), int(duplicates)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, i: int, notes: list[str] | None = None) -> np.ndarray:
        """(H, W, C) as `form` says; raises UnreadableImage; what is worth counting is appended to notes."""
        return self.decode(self.store.content(int(i)), notes)

    def decode(self, content: bytes | np.ndarray, notes: list[str] | None = None) -> np.ndarray:
        """What a store has of an image -> (H, W, C) as `form` says."""
        if isinstance(content, np.ndarray):
            return fit_depth(fit_picture(content, self.form.in_chans), self.form.bits)
        return decode(content, notes, self.form)

    def will_need(self, ids: np.ndarray) -> None:
        """Lets the store read ahead, where it can."""
        if hasattr(self.store, "will_need"):
            self.store.will_need(ids)

    @property
    def has_form(self) -> bool:
        return "form" in self.__dict__

    def take_form(self, in_chans: int = 3, bits: int | None = None, exif: bool = False, value_range=None) -> None:
        """Sets `form`. Without `bits` the first image that can be read decides; ValueError when it does not suit."""
        self.form = PixelFormat(in_chans, bits or 16, exif, value_range and tuple(value_range))
        found = 8 if bits is None else bits
        for i in range(min(LOOKED_AT, len(self))):
            try:
                content = self.store.content(i)
                if isinstance(content, np.ndarray):
                    depth = BITS[fit_picture(content, in_chans).dtype]
                else:
                    depth = depth_of(content, self.form)
            except Unfit as error:
                raise ValueError(f"{self.name(i)} does not suit: {error}; {_ways_on(error.reason)}") from None
            except UnreadableImage:
                continue
            found = bits or depth
            break
        self.form = dataclasses.replace(self.form, bits=found)
        self.__dict__.pop("fingerprint", None)

    def name(self, i: int) -> str:
        """On one line that any file and terminal takes; for names that are UTF-8, what the store calls the image."""
        return escaped(self.store.name(int(i)))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when images come, go, change their order, name, shard or label, or are read in another way; not when
        the data moves.
        """
        columns = [column.tobytes() for column in (self.shard_sizes, self.keys, self.labels)]
        form = [] if self.form == PixelFormat() else [repr(dataclasses.astuple(self.form)).encode()]
        return hashlib.blake2b(b"".join(columns + form), digest_size=8).hexdigest()

    @property
    def images(self) -> int:
        """In an epoch: those of a stream, of which only the first are here, or all."""
        return self.stream.images_per_epoch if self.stream else len(self)

    def describe(self) -> str:
        """One line for the log."""
        classes = len(np.unique(self.labels[self.labels >= 0]))
        labelled = f"{classes} classes" if classes else "no labels"
        shards = f" in {len(self.shard_sizes)} shards" if len(self.shard_sizes) > 1 else ""
        counted = (
            (self.duplicates, "with a key that was taken left out"),
            (self.incomplete, "samples without an image left out"),
            (self.lost, "images or labels lost (links to nothing, or sparse files)"),
            (self.odd_labels, "labels left out that are no class"),
        )
        left_out = "".join(f", {count} {what}" for count, what in counted if count)
        left_out += f", {len(self.skipped)} bad shards skipped ({self.skipped[0]})" if self.skipped else ""
        left_out += f", labels left out: {self.label_fault}" if self.label_fault else ""
        left_out += f", passed over: {self.passed_over}" if self.passed_over else ""
        left_out += f", headers of {self.unchecked} shards unchecked (indexed by DALI)" if self.unchecked else ""
        promise = f"; {self.promise}" if self.promise else ""
        return f"{self.title}: {self.images:,} images{shards}, {labelled}{left_out}{promise}"


def _ways_on(reason: str) -> str:
    if reason == "other values":
        return "give data.value_range=(least, greatest), or store uint8 or uint16"
    return (
        "set data.in_chans, with as many numbers in data.mean and data.std: `a2mim measure-stats DATA --in-chans N`"
        " prints them"
    )

"""Indexed images: the one type that loaders read, wherever the images are stored.

A store knows where the images are. It has two methods, `content(i)` and `name(i)`. The data set decodes the bytes. A
store must survive pickling (spawned workers) and forking. The data set holds, as arrays, everything that the order and
the random draws depend on.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np

from a2mim.data.decode import REDUCED, decode, depth_of, quick_depth_of
from a2mim.data.names import escaped
from a2mim.data.pixel_format import BITS, PixelFormat, Unfit, UnreadableImage, fit_depth, fit_picture, fit_range
from a2mim.data.thumbnails import show

LOOKED_AT = 4  # images that are tried for the depth until one can be read
MORE_LOOKED_AT = 8  # further images whose depth is compared


class Store(Protocol):
    """Where the images are. A store may also have `will_need(ids)`; it is called before these ids (N,) are read."""

    def content(self, i: int) -> bytes | np.ndarray:
        """The encoded image, or its pixels (H, W, C) if the store holds pixels. Raises UnreadableImage if only this
        image is at fault.
        """

    def name(self, i: int) -> str:
        """A name that helps a person to find the image: a path, or shard and member."""


@dataclasses.dataclass(eq=False)
class Stream:
    """The pipeline that a StreamLoader reads, and the images of an epoch over all processes."""

    pipeline: Any
    images_per_epoch: int


class ImageDataset:
    """Images by number.

    Args:
        store: where the pixels are.
        title: the source, as the user named it.
        keys: (N,) uint64, one per image, independent of the location of the data. Random crops depend on them.
        labels: (N,) int64, -1 = none.
        shard_sizes: images in each shard, in order; a folder is one shard.
        class_names: name of label 0, 1, ..., or None.
        splits: the splits that the source has; empty if it has one set, which is then used for every split.
        duplicates: images left out because an earlier image has the same key.

    `pixel_format` says how pixels are converted; `open_dataset` sets it. `skipped` names the bad shards that the user
    chose to skip. `incomplete` counts samples without an image. `unchecked` counts shards whose index came from DALI
    and was not verified.
    """

    pixel_format = PixelFormat()
    skipped: tuple[str, ...] = ()
    incomplete = unchecked = odd_labels = lost = 0
    label_fault = ""
    passed_over = depths_differ = ""
    label_reader: Callable[[], tuple[np.ndarray, list[str] | None, int]] | None = None  # labels, names, odd ones
    promise = ""  # which guarantees do not hold, as text for the user; see own_data.py
    stream: Stream | None = None  # the training stream, when this set holds only its first images; see streams.py

    def __init__(self, store: Store, title: str, keys, labels, shard_sizes, class_names=None, splits=(), duplicates=0):
        self.store, self.title = store, title
        self.keys = np.asarray(keys, np.uint64)
        self.labels = np.asarray(labels, np.int64)
        self.shard_sizes = np.asarray(shard_sizes, np.int64)
        self.class_names, self.splits, self.duplicates = class_names, tuple(splits), int(duplicates)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, i: int, notes: list[str] | None = None) -> np.ndarray:
        """(H, W, C) in the data set's format; raises UnreadableImage. Faults to be counted are appended to `notes`."""
        return self.decode(self.store.content(int(i)), notes)

    def decode(self, content: bytes | np.ndarray, notes: list[str] | None = None) -> np.ndarray:
        """Converts what a store returns to (H, W, C) in the data set's format."""
        if not isinstance(content, np.ndarray):
            return decode(content, notes, self.pixel_format)
        pixels = fit_picture(fit_range(content, self.pixel_format), self.pixel_format.in_chans)
        if notes is not None and BITS[pixels.dtype] > self.pixel_format.bits:
            notes.append(REDUCED)
        return fit_depth(pixels, self.pixel_format.bits)

    def will_need(self, ids: np.ndarray) -> None:
        """Lets the store read ahead, if it can."""
        if hasattr(self.store, "will_need"):
            self.store.will_need(ids)

    @property
    def has_pixel_format(self) -> bool:
        return "pixel_format" in self.__dict__

    def set_pixel_format(
        self,
        in_chans: int = 3,
        bits: int | None = None,
        exif: bool = False,
        value_range: tuple[float, float] | None = None,
        nodata: float | str | None = None,
        fill: float | None = None,
    ) -> None:
        """Sets `pixel_format`. Without `bits`, several images are read, and one with 16 bits makes it 16.

        Raises:
            ValueError: the first readable image does not fit.
        """
        nodata = None if nodata is None else float(nodata)
        limits = cast("tuple[float, float] | None", value_range and tuple(value_range))
        self.pixel_format = PixelFormat(in_chans, bits or 16, exif, limits, nodata, fill)
        depths = self._depth_of_first()
        if bits is None and depths:
            depths += self._depths_of_others()
            if len(set(depths)) > 1:
                self.depths_differ = f"{depths.count(16)} of {len(depths)} images looked at have 16 bits, the others 8"
        self.pixel_format = dataclasses.replace(self.pixel_format, bits=bits or max(depths, default=8))
        self.__dict__.pop("fingerprint", None)

    def _depth_of_first(self) -> list[int]:
        """Bits per value of the first readable image; [] if there is none; ValueError if the image does not fit."""
        for i in range(min(LOOKED_AT, len(self))):
            try:
                return [self._depth(i, depth_of)]
            except Unfit as error:
                raise ValueError(f"{self.name(i)} does not suit: {error}; {_ways_on(error.reason)}") from None
            except UnreadableImage:
                continue
        return []

    def _depths_of_others(self) -> list[int]:
        """Bits per value of some more images, spread over those that can be read quickly."""
        near = min(len(self), getattr(self.store, "nearby", len(self)))
        depths = []
        for i in np.unique(np.linspace(0, near - 1, MORE_LOOKED_AT + 1).astype(np.int64))[1:].tolist():
            with contextlib.suppress(UnreadableImage):
                depths.append(self._depth(i, quick_depth_of))
        return depths

    def _depth(self, i: int, of_encoded: Callable[[bytes, PixelFormat], int]) -> int:
        content = self.store.content(i)
        if isinstance(content, np.ndarray):
            return BITS[fit_picture(fit_range(content, self.pixel_format), self.pixel_format.in_chans).dtype]
        return of_encoded(content, self.pixel_format)

    def read_labels(self) -> None:
        """Reads labels that only the items have, once. Code that needs labels calls it."""
        if self.label_reader is not None:
            _ = self.fingerprint  # computed before the labels: a run may be resumed without reading them
            self.labels, names, self.odd_labels = self.label_reader()
            self.class_names, self.label_reader = self.class_names or names, None

    def name(self, i: int) -> str:
        """The store's name of the image, on one line, with bytes that are not UTF-8 escaped."""
        return escaped(self.store.name(int(i)))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of what the order depends on. It changes when images are added or removed, or when their order, name,
        shard, label or pixel format changes. It does not change when the data is moved.
        """
        columns = [column.tobytes() for column in (self.shard_sizes, self.keys, self.labels)]
        values = dataclasses.astuple(self.pixel_format)
        values = (
            values[:4] if self.pixel_format.nodata is None else values
        )  # keeps fingerprints from before `nodata` existed
        converted = [] if self.pixel_format == PixelFormat() else [repr(values).encode()]
        return hashlib.blake2b(b"".join(columns + converted), digest_size=8).hexdigest()

    def _repr_html_(self) -> str:
        return show(self)

    @property
    def images(self) -> int:
        """Number of images in an epoch; of a stream, the number that the user stated."""
        return self.stream.images_per_epoch if self.stream else len(self)

    def describe(self) -> str:
        """One line for the log."""
        classes = len(np.unique(self.labels[self.labels >= 0]))
        labelled = f"{classes} classes" if classes else "no labels"
        labelled = "labels in the items, read when they are needed" if self.label_reader else labelled
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
        left_out += f", {self.depths_differ}" if self.depths_differ else ""
        left_out += f", headers of {self.unchecked} shards unchecked (indexed by DALI)" if self.unchecked else ""
        promise = f"; {self.promise}" if self.promise else ""
        return f"{self.title}: {self.images:,} images{shards}, {labelled}{left_out}{promise}"


def _ways_on(reason: str) -> str:
    if reason == "other values":
        return "give data.value_range=(least, greatest), or store uint8 or uint16"
    if reason == "other axes":
        return "store one plane, with its channels as bands, in each file"
    return (
        "set data.in_chans, with as many numbers in data.mean and data.std: `a2mim measure-stats DATA --in-chans N`"
        " prints them"
    )

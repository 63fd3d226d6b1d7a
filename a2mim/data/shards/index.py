"""The index of one shard: where each sample's image lies, its key and what labels it, kept as arrays beside the shard.

Built from the tar's headers, cached in `<shard>.index.npz` (or in the cache folder when the shard is remote or its
folder read-only), and rebuilt when the shard's size or its time of change (its ETag, for a remote one) is another.
"""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from a2mim.data.access import DEFAULT, Access
from a2mim.data.keyed import key_of
from a2mim.data.names import class_name, is_class_name
from a2mim.data.shards.label_members import LONGEST, NoClass, label_of, text_of
from a2mim.data.shards.samples import group, split_name
from a2mim.data.shards.tarfiles import files, normal
from a2mim.data.walk import ARRAYS, PICTURES
from a2mim.files import replacing

VERSION = 4  # of the cached file
SAMPLE = np.dtype(
    [
        *(("offset", "<i8"), ("size", "<i8"), ("label", "<i8"), ("key", "<u8")),
        *(("name", "<i4"), ("text", "<i4"), ("folder", "<i4")),  # lines of `texts`, -1 = none
    ]
)
NONE = -1  # no label
_COUNTED = (*PICTURES, *ARRAYS, "cls", "json")  # suffixes of members that are missed when they lead to nothing
_MOST_TEXTS = 5000  # different .txt members in a shard; more are captions
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # a cached file, half written or foreign


@dataclass
class ShardIndex:
    """What the headers of a shard tell.

    Args:
        samples: (N,) SAMPLE, in the order of the archive.
        texts: class names, .txt contents and folders that samples point to.
        keys: webdataset's keys; None: not loaded, see `read_keys`.
        duplicates: images left out because their key was taken.
        incomplete: keys with other members and no image.
        captions: the .txt members are too many or too long to be labels.
        unchecked: taken from DALI's index, so that headers were not checked one by one.
        odd_labels: samples whose label is no class.
        lost: images and labels that are links to nothing in the archive, or sparse files.
    """

    samples: np.ndarray
    texts: list[str] = field(default_factory=list)
    keys: list[str] | None = None
    duplicates: int = 0
    incomplete: int = 0
    captions: bool = False
    unchecked: bool = False
    odd_labels: int = 0
    lost: int = 0


def read_index(path: str, access: Access = DEFAULT) -> ShardIndex:
    """The index of a local shard, from the cache when that is still true. Raises TarError."""
    places, stamp = local_places(path, access), local_stamp(path)
    index = load(places, stamp)
    if index is None:
        index = scan(path)
        store(index, places, stamp)
    return index


def scan(path: str, name: str | None = None) -> ShardIndex:
    """Reads every header of an archive; raises TarError.

    Args:
        name: the shard's file name, where the path is that of a copy; a part of the samples' keys.
    """
    lost: list[str] = []
    with open(path, "rb") as file:
        read = lambda offset, size: os.pread(file.fileno(), size, offset)  # noqa: E731
        return collect(files(path, lost), read, name or os.path.basename(path), lost)


def collect(found, read, name: str, lost: Sequence[str] = ()) -> ShardIndex:
    """Groups (name, offset, size) of members into samples, see samples.py.

    Args:
        read: `read(offset, size)` gives what labels contain.
        name: the shard's file name.
        lost: names of members whose content is not in the archive, complete once `found` is used up.
    """
    samples = group(found)
    texts, rows, odd = _Texts(), np.zeros(len(samples.images), SAMPLE), 0
    for row, (key, place) in enumerate(samples.images.items()):
        contents = {
            suffix: read(*where) if where[1] <= LONGEST[suffix] else None
            for suffix, (where, _) in samples.beside.get(key, {}).items()
            if suffix in LONGEST
        }
        label, named = NONE, None
        try:
            label, named = label_of(contents)
        except NoClass:
            odd += 1
        folder, slash, _ = normal(key).partition("/")
        numbers = (
            texts.number(named),
            texts.number(text_of(contents), few=True),
            texts.number(folder if slash else None),
        )
        rows[row] = (*place, label, key_of(f"{name}/{key}"), *numbers)
    gone = sum(split is not None and split[1].rpartition(".")[2] in _COUNTED for split in map(split_name, lost))
    return ShardIndex(
        samples=rows,
        texts=list(texts.known),
        keys=list(samples.images),
        duplicates=samples.duplicates,
        incomplete=len(samples.incomplete),
        captions=texts.captions,
        odd_labels=odd,
        lost=gone,
    )


class _Texts:
    """Strings, each kept once."""

    def __init__(self):
        self.known, self.captions, self.few = {}, False, 0

    def number(self, text: str | None, few: bool = False) -> int:
        if text is None or (few and self.captions):
            return -1
        text = text if few else class_name(text)
        if text not in self.known:
            self.few += few
            if few and (self.few > _MOST_TEXTS or not (is_class_name(text) or text.isdecimal())):
                self.captions = True
                return -1
            self.known[text] = len(self.known)
        return self.known[text]


def local_stamp(path: str) -> np.ndarray:
    stat = os.stat(path)
    return np.array([VERSION, stat.st_size, stat.st_mtime_ns], np.int64)


def remote_stamp(size: int | None, tag: str) -> np.ndarray:
    """A tag in place of a time; -1 where the size is not told."""
    return np.array([VERSION, -1 if size is None else size, key_of(tag) >> 1], np.int64)


def local_places(path: str, access: Access) -> tuple[Path, Path]:
    return Path(f"{path}.index.npz"), cached_place(os.path.abspath(path), access)


def cached_place(address: str, access: Access) -> Path:
    whole = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return access.folder / "indices" / f"{whole}.npz"


def load(places, stamp: np.ndarray, compare: int = 3) -> ShardIndex | None:
    """The first cached index whose stamp is this one (its first `compare` numbers), without the keys."""
    for place in places:
        with contextlib.suppress(*_UNREADABLE), open(place, "rb") as file, np.load(file) as stored:
            head = stored["head"]
            if np.array_equal(head[:compare], stamp[:compare]):
                duplicates, incomplete, captions, unchecked, odd_labels, lost, texts = head[3:].tolist()
                names = _split(stored["texts"]) if texts else []
                samples = stored["samples"]
                if samples.dtype == SAMPLE:
                    counts = duplicates, incomplete, bool(captions), bool(unchecked), odd_labels, lost
                    return ShardIndex(samples, names, None, *counts)
    return None


def load_keys(places, stamp: np.ndarray, compare: int = 3) -> list[str] | None:
    for place in places:
        with contextlib.suppress(*_UNREADABLE), open(place, "rb") as file, np.load(file) as stored:
            if np.array_equal(stored["head"][:compare], stamp[:compare]):
                return _split(stored["keys"])
    return None


def store(index: ShardIndex, places, stamp: np.ndarray) -> Path | None:
    """Writes the index to the first place that can be written to, which is returned."""
    counts = [index.duplicates, index.incomplete, index.captions, index.unchecked, index.odd_labels, index.lost]
    counts.append(len(index.texts))
    head = np.concatenate([stamp, np.array(counts, np.int64)])
    for place in places:
        with contextlib.suppress(OSError):
            _write(place, head=head, samples=index.samples, texts=_join(index.texts), keys=_join(index.keys))
            return place
    return None


def _join(texts: list[str]) -> np.ndarray:
    """One array of bytes, a zero after each: tar knows no zero in a name."""
    return np.frombuffer("".join(f"{text}\0" for text in texts).encode("utf-8", "surrogateescape"), np.uint8)


def _split(stored: np.ndarray) -> list[str]:
    return stored.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]


def _write(place: Path, **arrays: np.ndarray) -> None:
    """Whole or not at all: several processes may index the same shard."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with replacing(place, "wb") as file:
        np.savez(file, **arrays)

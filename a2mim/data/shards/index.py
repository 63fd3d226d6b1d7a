"""The index of one shard: where each sample's image lies, its key and what labels it, kept as arrays beside the shard.

Built from the tar's headers, cached in `<shard>.index.npz` (or in the cache folder when the shard is remote or its
folder read-only), and rebuilt when the shard's size or its time of change (its ETag, for a remote one) is another.
"""

import contextlib
import hashlib
import json
import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from a2mim.data.access import DEFAULT, Access
from a2mim.data.folder import ARRAYS, SUFFIXES
from a2mim.data.keyed import key_of
from a2mim.data.shards.tarfiles import TarError, members
from a2mim.files import replacing

VERSION = 3  # of the cached file
SAMPLE = np.dtype(
    [
        *(("offset", "<i8"), ("size", "<i8"), ("label", "<i8"), ("key", "<u8")),
        *(("name", "<i4"), ("text", "<i4"), ("folder", "<i4")),  # lines of `texts`, -1 = none
    ]
)
_LABELS = ("cls", "json", "txt")
_LONGEST_NAME = 200  # bytes of a class name
_MOST_TEXTS = 5000  # different .txt members in a shard; more are captions
_KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)  # webdataset's rule: all up to the file name's first dot
_NO_SAMPLE = re.compile(r"^__[^/]*__($|/)|(^|/)\._[^/]*$")  # webdataset's own members, and notes of macOS
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
    """

    samples: np.ndarray
    texts: list[str] = field(default_factory=list)
    keys: list[str] | None = None
    duplicates: int = 0
    incomplete: int = 0
    captions: bool = False
    unchecked: bool = False


def read_index(path: str, access: Access = DEFAULT) -> ShardIndex:
    """The index of a local shard, from the cache when that is still true. Raises TarError."""
    places, stamp = local_places(path, access), local_stamp(path)
    index = load(places, stamp)
    if index is None:
        index = scan(path)
        store(index, places, stamp)
    return index


def scan(path: str, name: str | None = None) -> ShardIndex:
    """Reads every header of an archive.

    Members belong to one sample when webdataset gives them one key. Of several images or labels of a sample the first
    is kept, and so is the first of samples that share a key. Arrays (.npy) are images where there are no pictures.

    Args:
        name: the shard's file name, where the path is that of a copy; a part of the samples' keys.
    """
    with open(path, "rb") as file:
        read = lambda offset, size: os.pread(file.fileno(), size, offset)  # noqa: E731
        return collect(members(path), read, path, name or os.path.basename(path))


def collect(found, read, path: str, name: str) -> ShardIndex:
    """Groups (name, offset, size) of members into samples; `read(offset, size)` gives what labels contain."""
    images, arrays, others, duplicates = {}, {}, {}, 0
    for member, offset, size in found:
        split = split_name(member)
        if split is None:
            continue
        key, suffix = split
        if suffix in SUFFIXES:
            duplicates += key in images
            images.setdefault(key, (offset, size))
        elif suffix in ARRAYS:
            arrays.setdefault(key, (offset, size))
        else:
            labels = others.setdefault(key, {})
            if suffix in _LABELS and suffix not in labels:
                labels[suffix] = (member, read(offset, min(size, 1 << 20)))
    images = images or arrays
    texts = _Texts()
    rows = np.zeros(len(images), SAMPLE)
    for row, (key, place) in enumerate(images.items()):
        label, class_name, text = _label(others.get(key, {}), path)
        folder = key.partition("/")[0] if "/" in key else None
        numbers = texts.number(class_name), texts.number(text, few=True), texts.number(folder)
        rows[row] = (*place, label, key_of(f"{name}/{key}"), *numbers)
    incomplete = sum(key not in images for key in others)
    return ShardIndex(rows, list(texts.known), list(images), duplicates, incomplete, texts.captions)


def split_name(member: str) -> tuple[str, str] | None:
    """(key, suffix) of a member by webdataset's rule, None for what belongs to no sample."""
    match = _KEY.fullmatch(member)
    return None if match is None or _NO_SAMPLE.search(member) else (match.group(1), match.group(2).lower())


class _Texts:
    """Strings, each kept once."""

    def __init__(self):
        self.known, self.captions, self.few = {}, False, 0

    def number(self, text: str | None, few: bool = False) -> int:
        if text is None or (few and self.captions):
            return -1
        if text not in self.known:
            self.few += few
            if few and (self.few > _MOST_TEXTS or not _is_name(text)):
                self.captions = True
                return -1
            self.known[text] = len(self.known)
        return self.known[text]


def _label(found: dict, path: str) -> tuple[int, str | None, str | None]:
    """(number or -1, class name, content of .txt): .cls goes before "label" in .json."""
    text = found["txt"][1].decode("utf-8", "replace").strip() if "txt" in found else None
    for suffix in ("cls", "json"):
        if suffix not in found:
            continue
        member, content = found[suffix]
        value = _value(suffix, content)
        if value is None:
            continue
        if isinstance(value, int):
            return value, None, text
        if isinstance(value, str) and value and _is_name(value):
            return -1, value, text
        shown = repr(content[:40])
        raise TarError(f"{path}: {member}: a label must be a whole number or a class name, this one is {shown}")
    return -1, None, text


def _value(suffix: str, content: bytes):
    """What is written there: a number, a name, None for JSON without a label; the bytes when it is none of these."""
    try:
        value = content.decode().strip() if suffix == "cls" else json.loads(content)
    except ValueError:
        return content
    if suffix == "json":
        value = value.get("label") if isinstance(value, dict) else None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_name(text: str) -> bool:
    return len(text.encode()) <= _LONGEST_NAME and text.isprintable()


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
                duplicates, incomplete, captions, unchecked, texts = head[3:].tolist()
                names = _split(stored["texts"]) if texts else []
                samples = stored["samples"]
                if samples.dtype == SAMPLE:
                    return ShardIndex(samples, names, None, duplicates, incomplete, bool(captions), bool(unchecked))
    return None


def load_keys(places, stamp: np.ndarray, compare: int = 3) -> list[str] | None:
    for place in places:
        with contextlib.suppress(*_UNREADABLE), open(place, "rb") as file, np.load(file) as stored:
            if np.array_equal(stored["head"][:compare], stamp[:compare]):
                return _split(stored["keys"])
    return None


def store(index: ShardIndex, places, stamp: np.ndarray) -> Path | None:
    """Writes the index to the first place that can be written to, which is returned."""
    counts = [index.duplicates, index.incomplete, index.captions, index.unchecked, len(index.texts)]
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

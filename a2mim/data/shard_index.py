"""The index of one shard: where each sample's image lies, its key and its label, kept as arrays beside the shard.

Built from the tar's headers, cached in `<shard>.index.npz` (or under the user's cache folder when the shard's is
read-only), and rebuilt when the shard's size or modification time has changed.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from a2mim.data.folder import SUFFIXES
from a2mim.data.keyed import key_of
from a2mim.data.tarfiles import TarError, members

VERSION = 2  # of the cached file
SAMPLE = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i8"), ("key", "<u8")])
_NO_SAMPLE = re.compile(r"^__[^/]*__($|/)|(^|/)\._[^/]*$")  # webdataset's own members, and notes of macOS
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # a cached file, half written or foreign


def read_index(path: str) -> np.ndarray:
    """The samples of a local shard: (N,) SAMPLE. Raises TarError."""
    return counted_index(path)[0]


def counted_index(path: str) -> tuple[np.ndarray, int]:
    """(`read_index`, how many images were left out of it, see `scan`); from the cache when that is still true."""
    stat = os.stat(path)
    stamp = np.array([VERSION, stat.st_size, stat.st_mtime_ns], np.int64)
    for cached in _places(path):
        with contextlib.suppress(*_UNREADABLE), open(cached, "rb") as file, np.load(file) as stored:
            if np.array_equal(stored["stamp"], stamp):
                return stored["samples"], int(stored["duplicates"])
    found, duplicates = scan(path)
    rows = [(offset, size, label, key_of(f"{os.path.basename(path)}/{name}")) for name, offset, size, label in found]
    index = np.array(rows, SAMPLE)
    for cached in _places(path):
        with contextlib.suppress(OSError):
            _write(cached, stamp=stamp, samples=index, duplicates=np.int64(duplicates))
            break
    return index, duplicates


def samples(path: str) -> list[tuple[str, int, int, int]]:
    """(key, offset, size, label) of each image in a shard; label -1 = none."""
    return scan(path)[0]


def scan(path: str) -> tuple[list[tuple[str, int, int, int]], int]:
    """(`samples`, how many images were left out of them because their key was taken).

    Members belong to one sample when webdataset gives them one key: all up to the first dot of the file name. Of
    several images or labels of a sample the first is kept, and so is the first of samples that share a key.
    """
    from webdataset.tariterators import base_plus_ext

    images, labels, duplicates = {}, {}, 0
    with open(path, "rb") as file:
        for name, offset, size in members(path):
            key, suffix = base_plus_ext(name)
            if key is None or _NO_SAMPLE.search(name):
                continue
            suffix = suffix.lower()
            if suffix in SUFFIXES:
                duplicates += key in images
                images.setdefault(key, (offset, size))
            elif suffix in ("cls", "json") and key not in labels:
                labels[key] = _label(path, name, suffix, os.pread(file.fileno(), size, offset))
    return [(key, offset, size, labels.get(key, -1)) for key, (offset, size) in images.items()], duplicates


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "a2mim"


def _label(path: str, name: str, suffix: str, content: bytes) -> int:
    """A whole number in .cls, or "label" in .json; -1 for JSON without one."""
    try:
        if suffix == "cls":
            return int(content)
        value = json.loads(content)
        return int(value.get("label", -1)) if isinstance(value, dict) else -1
    except (ValueError, TypeError):
        raise TarError(f"{path}: {name}: a label must be a whole number, this one is {content[:40]!r}") from None


def _places(path: str) -> tuple[Path, Path]:
    whole = hashlib.sha256(os.path.abspath(path).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return Path(f"{path}.index.npz"), cache_folder() / "indices" / f"{whole}.npz"


def _write(place: Path, **arrays: np.ndarray) -> None:
    """Whole or not at all: several processes may index the same shard."""
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=place.parent, prefix=place.name, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **arrays)
        os.replace(part, place)
    except BaseException:
        os.unlink(part)
        raise

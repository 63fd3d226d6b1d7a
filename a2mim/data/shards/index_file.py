"""The file of a shard's index: numpy arrays in a zip archive. A checksum covers every byte of them.

An index is beside its shard as `<shard>.index.npz`, or in the cache folder if the shard is remote or its folder is
read-only. It may come from a stranger or from a failing disk, so its checksum, sizes and ranges are checked before it
is used. A damaged index is made again, with a warning that says what is wrong. An index of another version, or of an
earlier state of the shard, is made again without a warning.
"""

import contextlib
import hashlib
import io
import os
import threading
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from a2mim.data.access import DEFAULT, Access
from a2mim.data.keyed import key_of
from a2mim.data.plain_files import NotPlain, read_file
from a2mim.data.shards.index import SAMPLE, ShardIndex, scan
from a2mim.data.shards.tarfiles import BLOCK
from a2mim.files import delete_partials, replacing

VERSION = 5  # of the file
STAMP = 4  # numbers in a stamp: version, size in bytes, time of change or tag, inode
SIZE_ONLY = 2  # the first numbers of a stamp, which are the same on every machine
_COUNTS = ("duplicates", "incomplete", "captions", "unchecked", "odd_labels", "lost")
_DTYPES = {"head": np.dtype("<i8"), "samples": SAMPLE, "texts": np.dtype("u1"), "keys": np.dtype("u1")}
_MOST = 1 << 30  # greatest size in bytes of an index whose shard has no known size
SPARE = 1 << 16  # bytes by which an index may be larger than its shard
_SLOWEST = 3600.0  # greatest time to write an index, in seconds
_PARSING = threading.Lock()  # CPython 3.11 fails if two threads parse Python literals, as numpy does, at once


class _Damaged(ValueError):
    """An index file is damaged; the message says how."""


def local_stamp(path: str) -> np.ndarray:
    """(STAMP,) int64: changes with the shard's size, time of change or inode."""
    return stamp_of(os.stat(path))


def stamp_of(status: os.stat_result) -> np.ndarray:
    """`local_stamp` from the result of `os.stat` or `os.fstat`."""
    return np.array([VERSION, status.st_size, status.st_mtime_ns, status.st_ino & (2**63 - 1)], np.int64)


def remote_stamp(size: int | None, tag: str) -> np.ndarray:
    """(STAMP,) int64 with a tag instead of a time; the size is -1 if it is unknown."""
    return np.array([VERSION, -1 if size is None else size, key_of(tag) >> 1, 0], np.int64)


def local_paths(path: str, access: Access) -> tuple[Path, Path]:
    """Paths of the index of a local shard, the preferred one first."""
    return Path(f"{path}.index.npz"), cached_path(os.path.abspath(path), access)


def cached_path(address: str, access: Access) -> Path:
    """Path of the index of a shard in the cache folder."""
    whole = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return access.folder / "indices" / f"{whole}.npz"


def read_index(path: str, access: Access = DEFAULT) -> ShardIndex:
    """The index of a local shard, loaded if its file is valid and up to date, else made again. Raises TarError."""
    index = load(local_paths(path, access), local_stamp(path))
    return make_index(path, access) if index is None else index


def make_index(path: str, access: Access = DEFAULT) -> ShardIndex:
    """Makes and stores the index of a local shard. Raises TarError."""
    paths, stamp = local_paths(path, access), local_stamp(path)
    index = scan(path)
    store(index, paths, stamp)
    return index


def load(paths: Iterable[Path], stamp: np.ndarray, compare: int = STAMP) -> ShardIndex | None:
    """The first index with this stamp, without the keys.

    Args:
        compare: how many numbers of the stamp must be equal.
    """
    for path in paths:
        arrays = _read(path, stamp, compare, ("head", "samples", "texts"))
        if arrays is not None:
            counts = dict(zip(_COUNTS, arrays["head"][STAMP:-1].tolist(), strict=True))
            counts |= {name: bool(counts[name]) for name in ("captions", "unchecked")}
            return ShardIndex(arrays["samples"], _split(arrays["texts"]), None, **counts)
    return None


def load_keys(paths: Iterable[Path], stamp: np.ndarray, compare: int = STAMP) -> list[str] | None:
    """The keys of the first index with this stamp."""
    for path in paths:
        arrays = _read(path, stamp, compare, ("head", "samples", "texts", "keys"))
        if arrays is not None:
            return _split(arrays["keys"])
    return None


def store(index: ShardIndex, paths: Iterable[Path], stamp: np.ndarray) -> Path | None:
    """Writes the index to the first path that can be written, and returns that path."""
    counts = [int(getattr(index, name)) for name in _COUNTS]
    arrays: dict[str, Any] = {
        "head": np.concatenate([stamp, np.array([*counts, len(index.texts)], np.int64)]),
        "samples": index.samples,
        "texts": _join(index.texts),
        "keys": _join(index.keys or []),
    }
    arrays["checksum"] = _checksum(arrays)
    for path in paths:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            delete_partials(path.parent, _SLOWEST, path.name)
            with replacing(path, "wb") as file:
                np.savez(file, **arrays)
            return path
    return None


def _read(path: Path, stamp: np.ndarray, compare: int, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """The named arrays, if the stamp is the expected one and all checks pass; else None."""
    most = _MOST if stamp[1] < 0 else int(stamp[1]) + SPARE
    try:
        content = read_file(path, most)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            head = _array(archive, "head", _DTYPES["head"])
            if len(head) and 0 < head[0] < VERSION:
                return None
            arrays = {name: _array(archive, name, dtype) for name, dtype in _DTYPES.items()}
            checksum = _array(archive, "checksum", np.dtype("u1"))
        if not np.array_equal(checksum, _checksum(arrays)):
            raise _Damaged("its checksum does not fit")
        if not np.array_equal(head[:compare], stamp[:compare]):
            return None
        _check(arrays, int(stamp[1]))
    except NotPlain as error:
        _tell(path, str(error.strerror))
        return None
    except OSError:  # it does not exist, or must not be read
        return None
    except Exception as error:  # a damaged zip archive raises nearly anything
        _tell(path, str(error) if isinstance(error, _Damaged) else f"{type(error).__name__}: {error}")
        return None
    return {name: arrays[name] for name in names}


def _tell(path: Path, why: str) -> None:
    warnings.warn(f"{path}: this index is damaged and is made anew: {why}", stacklevel=5)


def _array(archive: zipfile.ZipFile, name: str, dtype: np.dtype) -> np.ndarray:
    """One array. It never takes more memory than the file has bytes."""
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise _Damaged(f"it has no {name}") from None
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise _Damaged(f"its {name} are compressed, which a2mim does not do")
    file = io.BytesIO(archive.read(entry))
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise _Damaged(f"its {name} have another numpy format")
    with _PARSING:
        shape, _, stored = np.lib.format.read_array_header_1_0(file)
    data = file.read()
    if stored != dtype or len(shape) != 1 or shape[0] * dtype.itemsize != len(data):
        raise _Damaged(f"its {name} have another type or length")
    return np.frombuffer(data, dtype)


def _checksum(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """(16,) uint8: BLAKE2b of all arrays, each preceded by its length."""
    digest = hashlib.blake2b(digest_size=16)
    for name in _DTYPES:
        content = np.ascontiguousarray(arrays[name]).tobytes()
        digest.update(len(content).to_bytes(8, "little") + content)
    return np.frombuffer(digest.digest(), np.uint8)


def _check(arrays: dict[str, np.ndarray], size: int) -> None:
    """Raises _Damaged for numbers that are impossible in a shard of this size; size -1: unknown."""
    head, samples = arrays["head"], arrays["samples"]
    if len(head) != STAMP + len(_COUNTS) + 1 or (head[STAMP:] < 0).any():
        raise _Damaged("its head has another layout")
    texts, keys = (int((arrays[name] == 0).sum()) for name in ("texts", "keys"))
    if texts != head[-1] or keys != len(samples):
        raise _Damaged("its counts disagree with its contents")
    offsets, sizes = samples["offset"], samples["size"]
    last = (size if size >= 0 else np.iinfo(np.int64).max) - BLOCK
    if len(samples) and (
        (offsets < BLOCK).any() or (offsets % BLOCK).any() or (sizes < 0).any() or (sizes > last - offsets).any()
    ):
        raise _Damaged("it has offsets outside of the shard")
    for column in ("name", "text", "folder"):
        if len(samples) and not ((samples[column] >= -1) & (samples[column] < texts)).all():
            raise _Damaged("it refers to texts that it does not have")


def _join(texts: list[str]) -> np.ndarray:
    """One array of bytes, with a zero after each text."""
    return np.frombuffer(
        "".join(text.replace("\0", "\\0") + "\0" for text in texts).encode("utf-8", "surrogateescape"), np.uint8
    )


def _split(stored: np.ndarray) -> list[str]:
    return stored.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]

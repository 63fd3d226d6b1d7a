"""The file that keeps a shard's index: numpy arrays in a zip archive, each byte of them covered by a checksum.

An index lies beside its shard as `<shard>.index.npz`, or in the cache folder when the shard is remote or its folder
read-only. It may come from a stranger and from a failing disk: nothing of it is used before its checksum, its sizes and
its ranges have been looked at. What is wrong is said in a warning, and the index is made anew. An index of another
version, or of another state of the shard, is made anew in silence.
"""

import contextlib
import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from a2mim.data.access import DEFAULT, Access
from a2mim.data.keyed import key_of
from a2mim.data.plain_files import NotPlain, read_file
from a2mim.data.shards.index import SAMPLE, ShardIndex, scan
from a2mim.data.shards.tarfiles import BLOCK
from a2mim.files import delete_partials, replacing

VERSION = 5  # of the file
STAMP = 4  # numbers of a stamp: version, size in bytes, time of change or tag, inode
SIZE_ONLY = 2  # numbers of it that are the same on every machine
_COUNTS = ("duplicates", "incomplete", "captions", "unchecked", "odd_labels", "lost")
_DTYPES = {"head": np.dtype("<i8"), "samples": SAMPLE, "texts": np.dtype("u1"), "keys": np.dtype("u1")}
_MOST = 1 << 30  # bytes of an index whose shard has no known size
SPARE = 1 << 16  # bytes of an index beyond those of its shard, at most
_SLOWEST = 3600.0  # seconds that writing an index may take


class _Damaged(ValueError):
    """What is wrong with an index file."""


def local_stamp(path: str) -> np.ndarray:
    """(STAMP,) int64: changes with the shard's size, time of change or inode."""
    return stamp_of(os.stat(path))


def stamp_of(found: os.stat_result) -> np.ndarray:
    """As `local_stamp`, of what `os.stat` or `os.fstat` has said."""
    return np.array([VERSION, found.st_size, found.st_mtime_ns, found.st_ino & (2**63 - 1)], np.int64)


def remote_stamp(size: int | None, tag: str) -> np.ndarray:
    """(STAMP,) int64, with a tag in place of a time; -1 where the size is not told."""
    return np.array([VERSION, -1 if size is None else size, key_of(tag) >> 1, 0], np.int64)


def local_places(path: str, access: Access) -> tuple[Path, Path]:
    """Where the index of a local shard may lie, the better place first."""
    return Path(f"{path}.index.npz"), cached_place(os.path.abspath(path), access)


def cached_place(address: str, access: Access) -> Path:
    """Where the index of a shard lies in the cache folder."""
    whole = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return access.folder / "indices" / f"{whole}.npz"


def read_index(path: str, access: Access = DEFAULT) -> ShardIndex:
    """The index of a local shard, from its file when that is right and still true, else made anew. Raises TarError."""
    index = load(local_places(path, access), local_stamp(path))
    return make_index(path, access) if index is None else index


def make_index(path: str, access: Access = DEFAULT) -> ShardIndex:
    """Makes and stores the index of a local shard. Raises TarError."""
    places, stamp = local_places(path, access), local_stamp(path)
    index = scan(path)
    store(index, places, stamp)
    return index


def load(places: Iterable[Path], stamp: np.ndarray, compare: int = STAMP) -> ShardIndex | None:
    """The first index whose stamp is this one, without the keys.

    Args:
        compare: how many numbers of the stamp must be equal.
    """
    for place in places:
        arrays = _read(place, stamp, compare, ("head", "samples", "texts"))
        if arrays is not None:
            counts = dict(zip(_COUNTS, arrays["head"][STAMP:-1].tolist(), strict=True))
            counts |= {name: bool(counts[name]) for name in ("captions", "unchecked")}
            return ShardIndex(arrays["samples"], _split(arrays["texts"]), None, **counts)
    return None


def load_keys(places: Iterable[Path], stamp: np.ndarray, compare: int = STAMP) -> list[str] | None:
    """The keys of the first index whose stamp is this one."""
    for place in places:
        arrays = _read(place, stamp, compare, ("head", "samples", "texts", "keys"))
        if arrays is not None:
            return _split(arrays["keys"])
    return None


def store(index: ShardIndex, places: Iterable[Path], stamp: np.ndarray) -> Path | None:
    """Writes the index to the first place that can be written to, which is returned."""
    counts = [int(getattr(index, name)) for name in _COUNTS]
    arrays = {
        "head": np.concatenate([stamp, np.array([*counts, len(index.texts)], np.int64)]),
        "samples": index.samples,
        "texts": _join(index.texts),
        "keys": _join(index.keys or []),
    }
    arrays["checksum"] = _checksum(arrays)
    for place in places:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            delete_partials(place.parent, _SLOWEST, place.name)
            with replacing(place, "wb") as file:
                np.savez(file, **arrays)
            return place
    return None


def _read(place: Path, stamp: np.ndarray, compare: int, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """The arrays of these names, when the stamp is the one that is wanted and everything is right."""
    most = _MOST if stamp[1] < 0 else int(stamp[1]) + SPARE
    try:
        content = read_file(place, most)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            head = _array(archive, "head", _DTYPES["head"])
            if len(head) and 0 < head[0] < VERSION:
                return None
            arrays = {name: _array(archive, name, dtype) for name, dtype in _DTYPES.items()}
            found = _array(archive, "checksum", np.dtype("u1"))
        if not np.array_equal(found, _checksum(arrays)):
            raise _Damaged("its checksum does not fit")
        if not np.array_equal(head[:compare], stamp[:compare]):
            return None
        _check(arrays, int(stamp[1]))
    except NotPlain as error:
        _tell(place, str(error.strerror))
        return None
    except OSError:  # there is none, or it may not be read
        return None
    except Exception as error:  # a damaged zip archive raises nearly anything
        _tell(place, str(error) if isinstance(error, _Damaged) else f"{type(error).__name__}: {error}")
        return None
    return {name: arrays[name] for name in names}


def _tell(place: Path, why: str) -> None:
    warnings.warn(f"{place}: this index is damaged and is made anew: {why}", stacklevel=5)


def _array(archive: zipfile.ZipFile, name: str, dtype: np.dtype) -> np.ndarray:
    """One array, with no more memory than the file has bytes."""
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
    """Raises _Damaged for numbers that no shard of this size can have; size -1: unknown."""
    head, samples = arrays["head"], arrays["samples"]
    if len(head) != STAMP + len(_COUNTS) + 1 or (head[STAMP:] < 0).any():
        raise _Damaged("its head has another form")
    texts, keys = (int((arrays[name] == 0).sum()) for name in ("texts", "keys"))
    if texts != head[-1] or keys != len(samples):
        raise _Damaged("it has other counts than it says")
    offsets, sizes = samples["offset"], samples["size"]
    last = (size if size >= 0 else np.iinfo(np.int64).max) - BLOCK
    if len(samples) and (
        (offsets < BLOCK).any() or (offsets % BLOCK).any() or (sizes < 0).any() or (sizes > last - offsets).any()
    ):
        raise _Damaged("it has places outside of the shard")
    for column in ("name", "text", "folder"):
        if len(samples) and not ((samples[column] >= -1) & (samples[column] < texts)).all():
            raise _Damaged("it points to texts that it does not have")


def _join(texts: list[str]) -> np.ndarray:
    """One array of bytes, a zero after each."""
    return np.frombuffer(
        "".join(text.replace("\0", "\\0") + "\0" for text in texts).encode("utf-8", "surrogateescape"), np.uint8
    )


def _split(stored: np.ndarray) -> list[str]:
    return stored.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]

"""Features on disk: one pass over a set computes every requested part, memory-mapped and resumable.

An entry is a folder named after the hash of everything that decides its numbers. Each part is one .npy file in it, with
one row per image. `state.json` says how many rows of each part are finished, with a checksum of their bytes and of
itself. After a kill, the next run continues where the state ends. Rows that do not match their checksum are recomputed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import warnings
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from a2mim.evaluation.identity import hash_of
from a2mim.evaluation.overlap import signatures
from a2mim.evaluation.probe import Labelled
from a2mim.files import open_lock, partial_path, read_json, reserve, telling_full_disk, write_json
from a2mim.text import ProgressBar

VERSION = 3
SIGNATURE, SHOWN = "signature", "shown"  # parts of every pass: see overlap.py; whether the image could be read
ROW_BYTES = {SIGNATURE: 5 * 8, SHOWN: 1}  # of these parts
USED = ".used"  # the lock that an entry in use holds
HEADER_BYTES = 128  # of a .npy file
_ROWS = 2**15  # copied at once
_COPIED = 2**28  # bytes copied at once: the cells of an image may be a megabyte
_BLOCK = 2**22  # bytes read at once for a checksum
_SAVE_EVERY = 10.0  # seconds of work that a kill may cost
_FULL = (
    "make room, or give --feature-cache a folder on another disk; what was made is kept, and the same command goes on"
)


def default_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "a2mim" / "features"


@dataclass
class Cache:
    """Where entries lie, and how many bytes they may take together.

    Args:
        root: None keeps nothing beyond this process.
        most_bytes: beyond it the entries not used for longest are deleted. Entries in use, here or by another process,
            stay.
    """

    root: Path | None = field(default_factory=default_root)
    most_bytes: float = 20e9
    in_use: weakref.WeakSet[Entry] = field(default_factory=weakref.WeakSet, repr=False)  # here, also without locks

    def entry(self, identity: dict, title: str = "") -> Entry:
        """The entry of that identity: plain values, all of which decide its numbers. The title is for people."""
        key = hash_of([VERSION, identity])
        if self.root is None:
            return Entry(Path(tempfile.mkdtemp(prefix="a2mim-features-")), self, temporary=True)
        folder = Path(self.root) / key
        with telling_full_disk(folder, _FULL):
            entry = self._claimed(folder)
            write_json(folder / "identity.json", {"title": title} | identity, indent=1)
        return entry

    def _claimed(self, folder: Path) -> Entry:
        """Opens an entry; no process deletes it while it is in use."""
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OSError(
                    f"{self.root}: the features cannot be kept there ({error.strerror}): give --feature-cache a folder"
                    " that can be written to, or --no-feature-cache"
                ) from None
            with contextlib.suppress(FileNotFoundError):  # another process deleted it meanwhile: try again
                entry = Entry(folder, self)
                if (folder / USED).exists():
                    self.in_use.add(entry)
                    return entry

    def check_room(self, needed: int) -> None:
        """Raises an error if the features can never fit; called before the first image is read.

        Args:
            needed: bytes of all features of one command.
        """
        if self.root is not None and needed > self.most_bytes:
            raise ValueError(
                f"these features take {_gigabytes(needed)} GB and the cache may hold {self.most_bytes / 1e9:g} GB:"
                f" raise --feature-cache-gb to {_gigabytes(1.01 * needed)} or more, or give --no-feature-cache to keep"
                " them for this run only."
            )

    def make_room(self, for_bytes: int) -> None:
        """Deletes the entries not used for longest until `for_bytes` more fit; those in use stay, with a warning."""
        if self.root is None:
            return
        sizes = {path: _size(path) for path in Path(self.root).iterdir() if path.is_dir()}
        for path in sorted(sizes, key=_last_used):
            if sum(sizes.values()) + for_bytes <= self.most_bytes:
                return
            if path not in {entry.folder for entry in self.in_use} and _delete_unused(path):
                del sizes[path]
        if (total := sum(sizes.values()) + for_bytes) > self.most_bytes:
            warnings.warn(
                f"{self.root} will hold {_gigabytes(total)} GB, more than --feature-cache-gb {self.most_bytes / 1e9:g}:"
                " the rest is in use and stays",
                stacklevel=2,
            )


@dataclass
class PartState:
    """How many rows of a part's file are finished."""

    rows: int = 0
    size: int = 0  # bytes from the file's start
    checksum: int = 0  # CRC-32 of these bytes


@dataclass
class State:
    """What state.json holds."""

    parts: dict[str, PartState] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)  # unreadable images by reason

    def rows(self, part: str) -> int:
        return self.parts[part].rows if part in self.parts else 0

    def write(self, path: Path) -> None:
        content = asdict(self)
        write_json(path, {"content": content, "checksum": hash_of(content)}, indent=None)

    @staticmethod
    def read(path: Path) -> State:
        """An empty one where there is none, with a warning where it is damaged."""
        if not path.is_file():
            return State()
        try:
            read = read_json(path)
            if hash_of(read["content"]) != read["checksum"]:
                raise ValueError
            parts = {name: PartState(**part) for name, part in read["content"]["parts"].items()}
            return State(parts, read["content"]["faults"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            warnings.warn(f"{path} is damaged: its features are made again", stacklevel=2)
            return State()


class Entry:
    """One set of images seen by one encoder in one way. No other process deletes it while this object lives."""

    def __init__(self, folder: Path, cache: Cache, temporary: bool = False):
        self.folder, self.cache, self.temporary = folder, cache, temporary
        self.faults: Counter = Counter()
        self._trusted: set[str] = set()  # parts whose checksum was found right, or that were made here
        self._in_use = contextlib.ExitStack()
        self._in_use.enter_context(open_lock(folder / USED, shared=True))

    def __del__(self):
        if hasattr(self, "_in_use"):
            self._in_use.close()
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def missing_bytes(self, sizes: dict[str, int], rows: int) -> int:
        """What this entry will have when the parts are in it, in bytes.

        Args:
            sizes: bytes of each part of an image.
            rows: images in the set.
        """
        state = State.read(self.folder / "state.json")
        added = [size for part, size in (sizes | ROW_BYTES).items() if part not in state.parts]
        return _size(self.folder) + sum(rows * size + HEADER_BYTES for size in added)

    def lacks(self, parts: Iterable[str], rows: int) -> bool:
        """Whether a pass over the images is needed, according to the entry's state."""
        state = State.read(self.folder / "state.json")
        return any(state.rows(part) < rows for part in (*parts, SIGNATURE, SHOWN))

    def take(self, parts: Iterable[str], rows: int, extract: Callable, batches: Callable, what: str) -> None:
        """Makes the parts whole, in one pass over the images from the first row that any of them lacks.

        Args:
            rows: images in the set.
            extract: images as the loader gives them -> {part: (B, D)}; gets the parts that are missing.
            batches: start row -> a loader of the rest: dicts with "images" and "ids" (rows), and its `faults`.
            what: for the progress bar.

        Raises:
            DiskFull: what was made so far is kept, and the same call goes on with it.
        """
        wanted = tuple(dict.fromkeys((*parts, SIGNATURE, SHOWN)))
        with open_lock(self.folder / ".lock"), telling_full_disk(self.folder, _FULL):
            os.utime(self.folder)
            state = State.read(self.folder / "state.json")
            for part in wanted:
                self._verify(part, state)
            if state.rows(SIGNATURE) != state.rows(SHOWN):  # one pass makes both
                for part in (SIGNATURE, SHOWN):
                    state.parts.pop(part, None)
            missing = [part for part in wanted if state.rows(part) < rows]
            if missing:
                _Pass(self, missing, rows, state).run(extract, batches, what)
                self._trusted |= set(missing)
            self.faults = Counter(state.faults)

    def part(self, name: str) -> np.ndarray:
        """(N, D), memory-mapped; rows of unreadable images are 0. Writing to it changes no file."""
        return np.load(self.path(name), mmap_mode="c")  # copy-on-write: torch takes no read-only memory

    def path(self, part: str) -> Path:
        return self.folder / f"{part}.npy"

    def _verify(self, part: str, state: State) -> None:
        """Discards the stored rows of a part if they do not match their checksum."""
        if part in self._trusted or part not in state.parts:
            return
        known = state.parts[part]
        if known.rows and checksum_of(self.path(part), known.size) != known.checksum:
            warnings.warn(f"{self.path(part)} is damaged (wrong checksum): these features are made again", stacklevel=3)
            del state.parts[part]
        self._trusted.add(part)


class _Pass:
    """One pass that fills parts of an entry.

    Args:
        missing: parts to make.
        rows: images in the set.
        state: of the entry, kept up to date.
    """

    def __init__(self, entry: Entry, missing: list[str], rows: int, state: State):
        self.entry, self.missing, self.rows, self.state = entry, missing, rows, state
        self.start = min(state.rows(part) for part in missing)
        if SHOWN in missing and state.rows(SHOWN) != self.start:  # otherwise faults would be counted twice
            self.start = 0
        for part in missing:
            if state.rows(part) > self.start:
                state.parts[part] = entry_part(entry.path(part), self.start)
        self.maps: dict[str, np.memmap] = {}
        self._save_state()

    def run(self, extract: Callable, batches: Callable, what: str) -> None:
        known, loader, saved = Counter(self.state.faults), batches(self.start), time.monotonic()
        run = extract([part for part in self.missing if part not in (SIGNATURE, SHOWN)])
        with ProgressBar(
            total=self.rows, initial=self.start, desc=f"features of {what}", unit="image", leave=False
        ) as bar:
            for batch in loader:
                ids, found = batch["ids"].numpy(), {}
                if SIGNATURE in self.missing:
                    found = {SIGNATURE: signatures(batch["images"]), SHOWN: torch.ones(len(ids), 1, dtype=torch.uint8)}
                arrays = {part: value.cpu().numpy() for part, value in (run(batch["images"]) | found).items()}
                self.maps = self.maps or self._open(arrays)
                for part, value in arrays.items():
                    self.maps[part][ids] = value
                bar.update(int(ids[-1]) + 1 - bar.n)
                if time.monotonic() - saved > _SAVE_EVERY:
                    self._save(bar.n, loader, known)
                    saved = time.monotonic()
        self._save(self.rows, loader, known)

    def _open(self, found: dict[str, np.ndarray]) -> dict[str, np.memmap]:
        """Arrays to write to, of the types and widths of a first batch; from row 0 on they are new files."""
        if not self.start:
            size = sum(self.rows * value.nbytes // len(value) + HEADER_BYTES for value in found.values())
            if not self.entry.temporary:
                self.entry.cache.make_room(size)
            for part, value in found.items():
                new_array(self.entry.path(part), value.dtype, (self.rows, value.shape[1]))
        return {part: np.lib.format.open_memmap(self.entry.path(part), mode="r+") for part in found}

    def _save(self, done: int, loader, known: Counter) -> None:
        """Rows before `done` are whole."""
        for part, array in self.maps.items():
            array.flush()
            before = self.state.parts.get(part, PartState())
            self.state.parts[part] = grown(self.entry.path(part), before, done, array)
        if SHOWN in self.missing:
            counted = Counter(getattr(loader.faults, "unreadable", loader.faults))
            self.state.faults = dict(counted + known if self.start else counted)
        self._save_state()

    def _save_state(self) -> None:
        self.state.write(self.entry.folder / "state.json")


def new_array(path: Path, dtype, shape: tuple[int, ...]) -> None:
    """A .npy file of zeros whose bytes are on disk; whoever reads an old file of that name keeps it."""
    with partial_path(path) as partial:
        np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape).flush()
        with partial.open("r+b") as file:
            reserve(file, partial.stat().st_size)


def entry_part(path: Path, rows: int) -> PartState:
    """The state of a part that is whole up to a row."""
    if not rows:
        return PartState()
    return grown(path, PartState(), rows, np.load(path, mmap_mode="r"))


def grown(path: Path, before: PartState, rows: int, array: np.memmap) -> PartState:
    """The state of a part when more rows are whole: only new bytes are read."""
    size = array.offset + rows * (array.nbytes // max(1, len(array)))
    return PartState(rows, size, checksum_of(path, size, before.size, before.checksum))


def checksum_of(path: Path, end: int, start: int = 0, checksum: int = 0) -> int:
    """CRC-32 of a file's bytes before `end`, going on from that of those before `start`; -1: there are not as many."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            while start < end:
                block = file.read(min(_BLOCK, end - start))
                if not block:
                    return -1
                checksum, start = zlib.crc32(block, checksum), start + len(block)
    except FileNotFoundError:
        return -1
    return checksum


@dataclass
class FeatureSet:
    """The parts of a set's readable images.

    Args:
        entry: whole.
        labels: (N,) of the whole set.
    """

    entry: Entry
    all_labels: np.ndarray

    def __post_init__(self):
        self.rows = np.flatnonzero(self.entry.part(SHOWN)[:, 0])  # readable images, by their number in the set
        self.labels = torch.from_numpy(np.asarray(self.all_labels, np.int64)[self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def features(self, *parts: str) -> Tensor:
        """(n, D) float32 of the readable images, parts joined; on disk, also where unreadable images are left out."""
        whole = len(self.rows) == len(self.all_labels)
        if len(parts) == 1 and whole:
            return torch.from_numpy(self.entry.part(parts[0]))
        arrays = [self.entry.part(part) for part in parts]
        width = sum(array.shape[1] for array in arrays)
        with (
            telling_full_disk(self.entry.folder, _FULL),
            tempfile.TemporaryFile(dir=self.entry.folder) as file,
        ):
            reserve(file, len(self.rows) * width * arrays[0].itemsize)
            joined = np.memmap(file, arrays[0].dtype, "r+", shape=(len(self.rows), width))  # outlives `file`
        step = max(1, min(_ROWS, _COPIED // (width * arrays[0].itemsize)))
        for start in range(0, len(self.rows), step):
            rows = self.rows[start : start + step]
            joined[start : start + len(rows)] = np.concatenate([array[rows] for array in arrays], axis=1)
        return torch.from_numpy(joined)

    def labelled(self, parts: Iterable[str]) -> Labelled:
        return Labelled({part: self.features(part) for part in parts}, self.labels)

    def signatures(self) -> np.ndarray:
        return np.asarray(self.entry.part(SIGNATURE))[self.rows]


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, which another process may be deleting."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
    return total


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _delete_unused(folder: Path) -> bool:
    """False where a process uses it."""
    try:
        with open_lock(folder / USED, wait=False):
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return False
    except FileNotFoundError:  # another process has just deleted it
        pass
    return True


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g}"

"""Features on disk: one pass over a set gives every part that is asked for, memory-mapped and resumable.

An entry is a folder named after the hash of everything that decides its numbers. In it each part is one .npy of a row
an image; `state.json` says how many rows of each are whole. A process that is killed goes on where the state ends.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from a2mim.evaluation.identity import hash_of
from a2mim.evaluation.overlap import signatures
from a2mim.evaluation.probe import Labelled
from a2mim.files import open_lock, partial_path, write_json

VERSION = 2
SIGNATURE, SHOWN = "signature", "shown"  # parts of every pass: see overlap.py; whether the image could be read
_ROWS = 2**15  # copied at once
_SAVE_EVERY = 10.0  # seconds of work that a kill may cost


def default_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "a2mim" / "features"


@dataclass
class Cache:
    """Where entries lie, and how many bytes they may take together.

    Args:
        root: None keeps nothing beyond this process.
        most_bytes: beyond it the entries not used for longest are deleted; one that is larger by itself is not kept.
    """

    root: Path | None = field(default_factory=default_root)
    most_bytes: float = 20e9

    def entry(self, identity: dict, title: str = "") -> "Entry":
        """The entry of that identity: plain values, all of which decide its numbers. The title is for people."""
        key = hash_of([VERSION, identity])
        if self.root is None:
            return Entry(Path(tempfile.mkdtemp(prefix="a2mim-features-")), self, temporary=True)
        folder = Path(self.root) / key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "identity.json").write_text(json.dumps({"title": title} | identity, indent=1), encoding="utf-8")
        return Entry(folder, self)

    def make_room(self, for_bytes: int, keep: Path) -> bool:
        """Deletes old entries until `for_bytes` more fit; False, deleting nothing, where they never will."""
        sizes = {path: _size(path) for path in Path(self.root).iterdir() if path.is_dir()}
        if sizes.get(keep, 0) + for_bytes > self.most_bytes:
            return False
        for path in sorted(sizes, key=lambda path: path.stat().st_mtime):
            if sum(sizes.values()) + for_bytes <= self.most_bytes:
                break
            if path != keep and _delete_unused(path):
                del sizes[path]
        return True


class Entry:
    """One set of images seen by one encoder in one way."""

    def __init__(self, folder: Path, cache: Cache, temporary: bool = False):
        self.folder, self.cache, self.temporary = folder, cache, temporary
        self.faults: Counter = Counter()

    def __del__(self):
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def take(self, parts: Iterable[str], rows: int, extract: Callable, batches: Callable, what: str) -> None:
        """Makes the parts whole, in one pass over the images from the first row that any of them lacks.

        Args:
            rows: images in the set.
            extract: images as the loader gives them -> {part: (B, D)}; gets the parts that are missing.
            batches: start row -> a loader of the rest: dicts with "images" and "ids" (rows), and its `faults`.
            what: for the progress bar.
        """
        wanted = tuple(dict.fromkeys((*parts, SIGNATURE, SHOWN)))
        with self._locked():
            os.utime(self.folder)
            state = self._state()
            missing = [part for part in wanted if state["rows"].get(part, 0) < rows]
            if missing:
                self._pass(missing, rows, extract, batches, what, state)
            self.faults = Counter(state["faults"])

    def part(self, name: str) -> np.ndarray:
        """(N, D), read from disk as it is looked at; rows of unreadable images are 0. Writing to it changes no file."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="c")  # copy-on-write: torch takes no read-only memory

    def _pass(self, missing: list[str], rows: int, extract, batches, what: str, state: dict) -> None:
        start = min(state["rows"].get(part, 0) for part in missing)
        if SHOWN in missing and state["rows"].get(SHOWN, 0) != start:  # else faults would be counted twice
            start = 0
        state["rows"] |= {part: min(start, state["rows"].get(part, 0)) for part in missing}
        self._save(state)
        known, loader = Counter(state["faults"]), batches(start)
        run = extract([part for part in missing if part not in (SIGNATURE, SHOWN)])
        maps, saved = {}, time.monotonic()

        def save(done: int) -> None:
            for array in maps.values():
                array.flush()
            state["rows"] |= dict.fromkeys(missing, done)
            if SHOWN in missing:
                counted = Counter(getattr(loader.faults, "unreadable", loader.faults))
                state["faults"] = dict(counted + known if start else counted)
            self._save(state)

        with tqdm(total=rows, initial=start, desc=f"features of {what}", unit="image", leave=False) as bar:
            for batch in loader:
                ids, found = batch["ids"].numpy(), {}
                if SIGNATURE in missing:
                    found = {SIGNATURE: signatures(batch["images"]), SHOWN: torch.ones(len(ids), 1, dtype=torch.uint8)}
                found = {part: value.cpu().numpy() for part, value in (run(batch["images"]) | found).items()}
                maps = maps or self._open(found, rows, start)
                for part, value in found.items():
                    maps[part][ids] = value
                bar.update(int(ids[-1]) + 1 - bar.n)
                if time.monotonic() - saved > _SAVE_EVERY:
                    save(bar.n)
                    saved = time.monotonic()
        save(rows)

    def _open(self, found: dict[str, np.ndarray], rows: int, start: int) -> dict[str, np.memmap]:
        """Arrays to write to, of the types and widths of a first batch; from row 0 on they are new files."""
        paths = {part: self.folder / f"{part}.npy" for part in found}
        if start:
            return {part: np.lib.format.open_memmap(path, mode="r+") for part, path in paths.items()}
        size = rows * sum(value.nbytes // len(value) for value in found.values())
        if not self.temporary and not self.cache.make_room(size, self.folder):
            raise ValueError(
                f"these features take {size / 1e9:.1f} GB and the cache may hold {self.cache.most_bytes / 1e9:g} GB: "
                "raise --feature-cache-gb, or give --no-feature-cache to keep them for this run only."
            )
        for part, path in paths.items():
            shape = (rows, found[part].shape[1])
            with partial_path(path) as partial:  # whoever still reads the old file keeps it
                np.lib.format.open_memmap(partial, mode="w+", dtype=found[part].dtype, shape=shape).flush()
        return {part: np.lib.format.open_memmap(path, mode="r+") for part, path in paths.items()}

    def _save(self, state: dict) -> None:
        write_json(self.folder / "state.json", state, indent=None)

    def _state(self) -> dict:
        try:
            return json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"rows": {}, "faults": {}}

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Two processes that want one entry: the second waits, and finds it made."""
        with open_lock(self.folder / ".lock"):
            yield


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
        with tempfile.TemporaryFile(dir=self.entry.folder) as file:  # the mapping outlives the name
            joined = np.memmap(file, arrays[0].dtype, "w+", shape=(len(self.rows), width))
        for start in range(0, len(self.rows), _ROWS):
            rows = self.rows[start : start + _ROWS]
            joined[start : start + len(rows)] = np.concatenate([array[rows] for array in arrays], axis=1)
        return torch.from_numpy(joined)

    def labelled(self, parts: Iterable[str]) -> Labelled:
        return Labelled({part: self.features(part) for part in parts}, self.labels)

    def signatures(self) -> np.ndarray:
        return np.asarray(self.entry.part(SIGNATURE))[self.rows]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _delete_unused(folder: Path) -> bool:
    """False where another process is filling it."""
    try:
        with open_lock(folder / ".lock", wait=False):
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return False
    return True

"""One entry of the feature cache: parts that one pass over the images fills, and that a killed pass goes on with."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from a2mim.evaluation.cache_state import PartState, State, checksum_of, entry_part, grown, new_array
from a2mim.evaluation.overlap import signatures
from a2mim.evaluation.parts import Part, counted, in_this_process, share_of
from a2mim.files import open_lock, telling_full_disk
from a2mim.processes.leading import Share
from a2mim.text import ProgressBar

SIGNATURE, SHOWN = "signature", "shown"  # parts of every pass: see overlap.py; whether the image could be read
ROW_BYTES = {SIGNATURE: 5 * 8, SHOWN: 1}  # of these parts
USED = ".used"  # the lock that an entry in use holds
HEADER_BYTES = 128  # of a .npy file
FULL = (
    "make room, or give --feature-cache a folder on another disk; what was made is kept, and the same command goes on"
)
_SAVE_EVERY = 10.0  # seconds of work that a kill may cost


class Entry:
    """One set of images seen by one encoder in one way. No other process deletes it while this object lives.

    Args:
        folder: where its parts are, or will be.
        make_room: called with the bytes of new files before they are written; None: the entry is temporary, and its
            folder is deleted with this object.
    """

    def __init__(self, folder: Path, make_room: Callable[[int], None] | None = None):
        self.folder, self.make_room = folder, make_room
        self.faults: Counter = Counter()
        self._trusted: set[str] = set()  # parts whose checksum was found right, or that were made here
        self._in_use = contextlib.ExitStack()
        self._in_use.enter_context(open_lock(folder / USED, shared=True))

    def __del__(self):
        if hasattr(self, "_in_use"):
            self._in_use.close()
        if self.make_room is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def missing_bytes(self, sizes: dict[str, int], rows: int) -> int:
        """What this entry will have when the parts are in it, in bytes.

        Args:
            sizes: bytes of each part of an image.
            rows: images in the set.
        """
        state = State.read(self.folder / "state.json")
        added = [size for part, size in (sizes | ROW_BYTES).items() if part not in state.parts]
        return size_of(self.folder) + sum(rows * size + HEADER_BYTES for size in added)

    def lacks(self, parts: Iterable[str], rows: int) -> bool:
        """Whether a pass over the images is needed, according to the entry's state."""
        state = State.read(self.folder / "state.json")
        return any(state.rows(part) < rows for part in (*parts, SIGNATURE, SHOWN))

    def take(
        self,
        parts: Iterable[str],
        rows: int,
        extract: Callable,
        batches: Callable,
        what: str,
        spread: Callable[[Share, list[str], int], Iterator[Part]] = in_this_process,
    ) -> None:
        """Makes the parts whole, in one pass over the images from the first row that any of them lacks.

        Args:
            rows: images in the set.
            extract: images as the loader gives them -> {part: (B, D)}; gets the parts that are missing.
            batches: start row -> a loader of the rest: dicts with "images" and "ids" (rows), and its `faults`.
            what: for the progress bar.
            spread: (this process's share, the parts that are missing, the start row) -> the results of all batches, in
                order; several processes may compute them.

        Raises:
            DiskFull: what was made so far is kept, and the same call goes on with it.
        """
        wanted = tuple(dict.fromkeys((*parts, SIGNATURE, SHOWN)))
        with open_lock(self.folder / ".lock"), telling_full_disk(self.folder, FULL):
            os.utime(self.folder)
            state = State.read(self.folder / "state.json")
            for part in wanted:
                self._verify(part, state)
            if state.rows(SIGNATURE) != state.rows(SHOWN):  # one pass makes both
                for part in (SIGNATURE, SHOWN):
                    state.parts.pop(part, None)
            missing = [part for part in wanted if state.rows(part) < rows]
            if missing:
                _Pass(self, missing, rows, state).run(extract, batches, what, spread)
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


def extracting(extract: Callable, missing: list[str]) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """(images as the loader gives them) -> the missing parts of each, signatures among them."""
    run = extract([part for part in missing if part not in (SIGNATURE, SHOWN)])

    def compute(images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        if SIGNATURE in missing:
            shown = torch.ones(len(images), 1, dtype=torch.uint8)
            found = {SIGNATURE: signatures(images), SHOWN: shown}
        return run(images) | found

    return compute


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

    def run(self, extract: Callable, batches: Callable, what: str, spread: Callable) -> None:
        known, loader, saved = Counter(self.state.faults), batches(self.start), time.monotonic()
        parts = spread(share_of(loader, extracting(extract, self.missing)), self.missing, self.start)
        with ProgressBar(
            total=self.rows, initial=self.start, desc=f"features of {what}", unit="image", leave=False
        ) as bar:
            for part in counted(loader, parts, self.rows - self.start):
                ids = part.ids.numpy()
                arrays = {name: value.cpu().numpy() for name, value in part.found.items()}
                self.maps = self.maps or self._open(arrays)
                for name, value in arrays.items():
                    self.maps[name][ids] = value
                bar.update(int(ids[-1]) + 1 - bar.n)
                if time.monotonic() - saved > _SAVE_EVERY:
                    self._save(bar.n, loader, known)
                    saved = time.monotonic()
        self._save(self.rows, loader, known)

    def _open(self, found: dict[str, np.ndarray]) -> dict[str, np.memmap]:
        """Arrays to write to, of the types and widths of a first batch; from row 0 on they are new files."""
        if not self.start:
            size = sum(self.rows * value.nbytes // len(value) + HEADER_BYTES for value in found.values())
            if self.entry.make_room is not None:
                self.entry.make_room(size)
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


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, which another process may be deleting."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
    return total

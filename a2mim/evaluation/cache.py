"""Features on disk: where the entries lie, how much they may take together, and which go first.

An entry is a folder named after the hash of everything that decides its numbers (cache_entry.py). Each part is one .npy
file in it, with one row per image. `state.json` says how many rows of each part are finished, with a checksum of their
bytes and of itself (cache_state.py). After a kill, the next run continues where the state ends. Rows that do not match
their checksum are recomputed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path

from a2mim.evaluation.cache_entry import FULL, USED, Entry, size_of
from a2mim.evaluation.identity import hash_of
from a2mim.files import open_lock, telling_full_disk, write_json
from a2mim.text import warn_user

VERSION = 3


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
            return Entry(Path(tempfile.mkdtemp(prefix="a2mim-features-")))
        folder = Path(self.root) / key
        with telling_full_disk(folder, FULL):
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
                entry = Entry(folder, self.make_room)
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
        sizes = {path: size_of(path) for path in Path(self.root).iterdir() if path.is_dir()}
        for path in sorted(sizes, key=_last_used):
            if sum(sizes.values()) + for_bytes <= self.most_bytes:
                return
            if path not in {entry.folder for entry in self.in_use} and _delete_unused(path):
                del sizes[path]
        if (total := sum(sizes.values()) + for_bytes) > self.most_bytes:
            warn_user(
                f"{self.root} will hold {_gigabytes(total)} GB, more than --feature-cache-gb {self.most_bytes / 1e9:g}:"
                " the rest is in use and stays"
            )


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

"""Unfinished embeddings: a folder of memory-mapped rows, from which the next run continues after a kill.

Invariant: rows before `done` are on disk and agree with their checksum, and `done` is a whole number of batches. So a
resumed run puts the same images into the same batches and ends with the same bits.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np

from a2mim.evaluation.cache_state import PartState, checksum_of, grown, new_array
from a2mim.evaluation.identity import hash_of
from a2mim.files import make_own_folder, read_json, write_json

STATE = "state.json"
ARRAYS = ("embedding", "readable", "overflowed")


class Unfinished:
    """Rows of a set of images.

    Args:
        folder: created here, unless a run of the same `identity` has left it.
        rows, width: images, and numbers of an embedding.
        identity: plain values, on which the bits of the rows depend.

    Attributes:
        embeddings: (N, D) float32. An image that could not be read has zeros.
        readable: (N,) bool; False also where an embedding is not finite.
        overflowed: (N,) bool, True where an embedding is not finite.
        not_finite, last_not_finite: number of overflowed embeddings since the start of this process, and row of the
            last.

    Raises:
        ValueError: the folder belongs to a run with another identity.
        OSError: ENOSPC, there is no room for the rows.
    """

    def __init__(self, folder: Path, rows: int, width: int, identity: dict):
        self.folder, self.done = folder, 0
        self.not_finite, self.last_not_finite = 0, 0
        self.identity = json.loads(json.dumps(identity | {"rows": rows, "width": width}))
        self.parts = {name: PartState() for name in ARRAYS}
        make_own_folder(folder)
        if odd := [path for path in folder.iterdir() if path.is_symlink() or not path.is_file()]:
            raise ValueError(f"{odd[0]} is no regular file, as all unfinished work is: remove it, or add --overwrite")
        if (state := read_state(folder)) is not None:
            self._go_on(state)
        if not self.done:
            new_array(self.path("embedding"), np.float32, (rows, width))
            for name in ("readable", "overflowed"):
                new_array(self.path(name), np.bool_, (rows,))
        self.embeddings, self.readable, self.overflowed = (
            np.lib.format.open_memmap(self.path(name), "r+") for name in ARRAYS
        )

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _go_on(self, state: dict) -> None:
        changed = [key for key in self.identity if state["identity"].get(key) != self.identity[key]]
        if changed:
            before, now = (one.get(changed[0]) for one in (state["identity"], self.identity))
            raise ValueError(
                f"{self.folder} holds the unfinished work of a run with {changed[0]}={before!r}, now it is {now!r};"
                " run it as before to go on with it, or add --overwrite"
            )
        parts = {name: PartState(**part) for name, part in state["parts"].items()}
        for name, part in parts.items():
            if checksum_of(self.path(name), part.size) != part.checksum:
                warnings.warn(f"{self.path(name)} is damaged (wrong checksum): all rows are made again", stacklevel=3)
                return
        self.done, self.parts = state["done"], parts

    def put(self, ids: np.ndarray, embeddings: np.ndarray) -> None:
        """Rows of images that could be read."""
        finite = np.isfinite(embeddings).all(axis=1)
        self.embeddings[ids], self.readable[ids], self.overflowed[ids] = embeddings, finite, ~finite
        if not finite.all():
            self.not_finite += int((~finite).sum())
            self.last_not_finite = int(ids[~finite][-1])

    def save(self, done: int) -> None:
        """Everything before row `done` is final."""
        for name, array in zip(ARRAYS, (self.embeddings, self.readable, self.overflowed), strict=True):
            array.flush()
            self.parts[name] = grown(self.path(name), self.parts[name], done, array)
        content = {"identity": self.identity, "done": done, "parts": {k: vars(v) for k, v in self.parts.items()}}
        write_json(self.folder / STATE, {"content": content, "checksum": hash_of(content)}, indent=None)
        self.done = done

    def finish(self) -> None:
        """Rows of images without an embedding become NaN."""
        self.embeddings[~self.readable] = np.nan
        self.parts = {name: PartState() for name in ARRAYS}  # earlier rows have changed
        self.save(self.done)

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def read_state(folder: Path) -> dict | None:
    """Content of state.json; None if there is none, or, with a warning, if it is damaged."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        read = read_json(path)
        if hash_of(read["content"]) == read["checksum"]:
            return read["content"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    warnings.warn(f"{path} is damaged: all rows are made again", stacklevel=3)
    return None

"""Embeddings while they are being made: a folder of memory-mapped rows that a killed process goes on with.

Invariant: rows before `done` are on disk, and `done` is a whole number of batches, so that a run that goes on puts the
same images into the same batches and ends with the same bits.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from a2mim.files import write_json

STATE = "state.json"


class Unfinished:
    """Rows of a set of images.

    Args:
        folder: made here, unless it is there from a run of the same `identity`.
        rows, width: images, and numbers of an embedding.
        identity: plain values, on which the bits of the rows depend.

    Raises:
        ValueError: the folder is of a run with another identity.
    """

    def __init__(self, folder: Path, rows: int, width: int, identity: dict):
        self.folder, self.done = folder, 0
        identity = json.loads(json.dumps(identity | {"rows": rows, "width": width}))
        if (folder / STATE).is_file():
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            changed = [key for key in identity if state["identity"].get(key) != identity[key]]
            if changed:
                before, now = (one.get(changed[0]) for one in (state["identity"], identity))
                raise ValueError(
                    f"{folder} holds the unfinished work of a run with {changed[0]}={before!r}, now it is {now!r};"
                    " run it as before to go on with it, or add --overwrite"
                )
            self.done = state["done"]
        self.identity, mode = identity, "r+" if self.done else "w+"
        folder.mkdir(parents=True, exist_ok=True)
        self.embeddings = np.lib.format.open_memmap(
            folder / "embedding.npy", mode, None if self.done else np.float32, None if self.done else (rows, width)
        )
        self.readable = np.lib.format.open_memmap(
            folder / "readable.npy", mode, None if self.done else np.bool_, None if self.done else (rows,)
        )

    def put(self, ids: np.ndarray, embeddings: np.ndarray) -> None:
        """Rows of images that could be read."""
        self.embeddings[ids], self.readable[ids] = embeddings, True

    def save(self, done: int) -> None:
        """Everything before row `done` is final."""
        self.embeddings.flush()
        self.readable.flush()
        write_json(self.folder / STATE, {"identity": self.identity, "done": done}, indent=None)
        self.done = done

    def remove(self) -> None:
        shutil.rmtree(self.folder)

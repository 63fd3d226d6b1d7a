"""What of a part's file is finished: its rows, and a checksum of their bytes; kept in an entry's state.json."""

from __future__ import annotations

import warnings
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from a2mim.evaluation.identity import hash_of
from a2mim.files import partial_path, read_json, reserve, write_json

_BLOCK = 2**22  # bytes read at once for a checksum


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

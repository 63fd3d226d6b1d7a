"""The three file formats of embeddings, written block by block: Parquet, NumPy's npz, CSV.

Each has the columns key, label (-1: none), class (empty: none) and embedding. An unreadable image has a row too, whose
embedding is null (Parquet), NaN (npz) or empty (CSV). A file appears whole or not at all.
"""

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from a2mim.files import partial_path

BLOCK = 4096  # rows held at a time


@dataclass
class Block:
    """Rows of the result."""

    keys: list[str]
    labels: np.ndarray  # (B,) int64
    classes: list[str | None]
    embeddings: np.ndarray  # (B, D) float32
    readable: np.ndarray  # (B,) bool


def check_out(path: Path) -> None:
    """Raises ValueError for another file type, or if the type needs a package that is not installed."""
    if path.suffix not in WRITERS:
        raise ValueError(f"--out {path} ends in {path.suffix or 'nothing'!r}: end it in {', '.join(WRITERS)}.")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ValueError(
                f"to write {path} pyarrow must be installed: pip install 'a2mim[parquet]', or end the name in .npz."
            ) from None


def write(path: Path, dataset, work, about: dict) -> str:
    """Writes `path` whole or not at all; returns its SHA-256, in hexadecimal digits.

    Args:
        dataset: an `a2mim.data.ImageDataset`.
        work: `embeddings` (N, D) float32, memory-mapped, and `readable` (N,) bool.
        about: plain values.
    """

    def blocks() -> Iterator[Block]:
        return blocks_of(dataset, work.embeddings, work.readable)

    with partial_path(path) as partial:
        WRITERS[path.suffix](partial, blocks, len(dataset), work.embeddings, about)
        return sha256_of(partial)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parquet(path: Path, blocks, rows: int, embeddings: np.ndarray, about: dict) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = embeddings.shape[1]
    fields = [("key", pa.string()), ("label", pa.int64()), ("class", pa.string())]
    schema = pa.schema([*fields, ("embedding", pa.list_(pa.float32(), width))], {"a2mim": json.dumps(about)})
    with pq.ParquetWriter(path, schema) as writer:
        for block in blocks():
            values = pa.array(block.embeddings.reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(values, width, mask=pa.array(~block.readable))
            columns = [block.keys, block.labels, pa.array(block.classes, pa.string()), lists]
            writer.write_table(pa.table(columns, schema=schema))


def _npz(path: Path, blocks, rows: int, embeddings: np.ndarray, about: dict) -> None:
    """Keys and classes as fixed-width text, so that no pickle is needed; the embeddings go from disk to disk."""
    keys, labels, classes = [], [], []
    for block in blocks():
        keys += block.keys
        labels.append(block.labels)
        classes += [name or "" for name in block.classes]
    columns: dict[str, Any] = {
        "key": np.array(keys, dtype=np.str_),
        "label": np.concatenate(labels),
        "class": np.array(classes, dtype=np.str_),
    }
    with path.open("wb") as file:
        np.savez(file, **columns, embedding=embeddings, about=np.array(json.dumps(about)))


def _csv(path: Path, blocks, rows: int, embeddings: np.ndarray, about: dict) -> None:
    """One column per number, e0, e1, …; nine digits give a float32 back exactly."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "label", "class", *(f"e{i}" for i in range(embeddings.shape[1]))])
        for block in blocks():
            for i, key in enumerate(block.keys):
                numbers = [f"{v:.9g}" for v in block.embeddings[i]] if block.readable[i] else [""] * embeddings.shape[1]
                writer.writerow([key, block.labels[i], block.classes[i] or "", *numbers])


WRITERS = {".parquet": _parquet, ".npz": _npz, ".csv": _csv}


def blocks_of(dataset, embeddings: np.ndarray, readable: np.ndarray) -> Iterator[Block]:
    """The rows in order, BLOCK at a time; dataset: an `a2mim.data.ImageDataset`."""
    names = dataset.class_names
    for start in range(0, len(dataset), BLOCK):
        place = slice(start, min(start + BLOCK, len(dataset)))
        labels = dataset.labels[place]
        classes = [names[label] if names and 0 <= label < len(names) else None for label in labels]
        keys = [dataset.name(i) for i in range(place.start, place.stop)]
        yield Block(keys, labels, classes, np.asarray(embeddings[place]), np.asarray(readable[place]))

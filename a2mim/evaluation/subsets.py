"""Parts of a labelled set: class-balanced, drawn from a seed alone, written out as lists."""

import copy
import os
import re
from pathlib import Path

import numpy as np

from a2mim.data import ImageDataset
from a2mim.files import read_text, write_text


def draw_subset(labels, size: str | float | int, seed: int = 0) -> np.ndarray:
    """Rows, ascending, with the same share or number of every class; at least one image a class.

    Args:
        labels: (N,) int.
        size: "1%" or 0.01, a share of each class; "5" or 5, images a class (all of a class that has fewer).
        seed: the same rows for the same labels, for ever: numpy promises PCG64's raw numbers, not its shuffles.

    Raises:
        ValueError: a share outside 0..100 %, or fewer than one image.
    """
    labels = np.asarray(labels)
    share, number = parse_size(size)
    order = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    order = order[np.argsort(labels[order], kind="stable")]  # classes one after another, shuffled inside
    _, counts = np.unique(labels, return_counts=True)
    wanted = np.minimum(number or 0, counts) if share is None else np.maximum(1, np.rint(share * counts))
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[place < np.repeat(wanted, counts)])


def parse_size(size: str | float | int) -> tuple[float | None, int | None]:
    """(share, None) or (None, images a class)."""
    text = str(size).strip()
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text)
    if found:
        value = float(found[1])
        if found[2] and 0 < value <= 100:
            return value / 100, None
        if not found[2] and value.is_integer() and value >= 1 and not isinstance(size, float):
            return None, int(value)
        if not found[2] and 0 < value < 1:
            return value, None
    raise ValueError(f'subset {size!r} must be a share of each class such as "1%", or images a class such as "5".')


def write_list(dataset: ImageDataset, rows: np.ndarray, path: str | os.PathLike) -> Path:
    """One line an image: row, label, name, with tabs between."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{row}\t{dataset.labels[row]}\t{dataset.name(int(row))}\n" for row in rows]
    write_text(path, "".join(lines))
    return path


def read_list(path: str | os.PathLike, dataset: ImageDataset) -> np.ndarray:
    """The rows of a list; ValueError where their labels are not those of this set."""
    try:
        lines = [line.split("\t")[:2] for line in read_text(path).splitlines() if line.strip()]
        rows, labels = np.array(lines, np.int64).reshape(-1, 2).T
    except ValueError:
        raise ValueError(f"{path} is no list of a2mim: each line must be row, label and name, with tabs.") from None
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= len(dataset) or (dataset.labels[rows] != labels).any():
        raise ValueError(f"{path} lists other images than {dataset.title} has: its rows and labels do not agree.")
    return rows


def subset_of(dataset: ImageDataset, rows: np.ndarray) -> ImageDataset:
    """The images of some rows as a set of their own; each keeps its key, hence its random crops."""
    rows = np.asarray(rows, np.int64)
    part = copy.copy(dataset)
    part.__dict__.pop("fingerprint", None)
    part.store, part.title = PartStore(dataset.store, rows), f"{len(rows)} images of {dataset.title}"
    part.keys, part.labels = dataset.keys[rows], dataset.labels[rows]
    shards = np.searchsorted(np.cumsum(dataset.shard_sizes), rows, side="right")
    part.shard_sizes = np.unique(shards, return_counts=True)[1]
    if (np.diff(shards) < 0).any():
        raise ValueError("the rows of a subset must be in ascending order")
    return part


class PartStore:
    """Some images of another store, renumbered."""

    def __init__(self, store, rows: np.ndarray):
        self.store, self.rows = store, rows

    def content(self, i: int):
        return self.store.content(int(self.rows[i]))

    def name(self, i: int) -> str:
        return self.store.name(int(self.rows[i]))

    def will_need(self, ids: np.ndarray) -> None:
        if hasattr(self.store, "will_need"):
            self.store.will_need(self.rows[ids])

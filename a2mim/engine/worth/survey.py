"""A look at the data before anything is compared: counts, sizes, unreadable images, copies; and the splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from a2mim.data import Access, ImageDataset, open_dataset
from a2mim.data.class_names import match_labels
from a2mim.data.pixel_format import UnreadableImage
from a2mim.data.sources import labels_of
from a2mim.engine.worth.budget import SHARES
from a2mim.evaluation.label_free_run import FEWEST
from a2mim.evaluation.linear import hold_out
from a2mim.evaluation.overlap import find_overlap, signatures
from a2mim.evaluation.subsets import draw_subset, subset_of, write_list

TEST_SHARE = 0.25  # of each class
MOST_TEST = 4_000  # images
MOST_POOL = 50_000  # images that are looked at and pre-trained on: more do not fit into minutes
THUMBNAIL = 64  # pixels of the side at which images are compared
FEWEST_LABELLED = 8  # training images with a label


@dataclass
class Survey:
    """What was found, and what is used.

    Attributes:
        facts: for the plan and the results; plain values.
        pool: images to pre-train on; no test image and no near copy of one is among them.
        train: labelled images to train on, or None.
        test: labelled images to test on, or None.
        notes: sentences for the user.
    """

    facts: dict
    pool: ImageDataset
    train: ImageDataset | None = None
    test: ImageDataset | None = None
    notes: list[str] = field(default_factory=list)

    def labelled(self, share: str, seed: int) -> ImageDataset:
        """A class-balanced share of the labelled training images; another one for each seed."""
        assert self.train is not None
        if share == SHARES[-1]:
            return self.train
        return part_of(self.train, draw_subset(self.train.labels, share, seed))

    def keep_labels(self, number: int) -> None:
        """Cuts the labelled training images to a class-balanced part of about so many."""
        if self.train is not None and number < len(self.train):
            rows = draw_subset(self.train.labels, number / len(self.train), 0)
            self.notes.append(f"{len(rows):,} of {len(self.train):,} labelled images are trained on: no time for more")
            self.train = part_of(self.train, rows)


def part_of(dataset: ImageDataset, rows: np.ndarray) -> ImageDataset:
    """`subset_of`, as one set without a test part of its own."""
    part = subset_of(dataset, rows)
    part.splits = ()
    return part


def look_at(data, labels, folder: Path, access: Access | None = None, say: Callable = print, test_data=None) -> Survey:
    """Reads every image once and splits the labelled ones.

    Args:
        data: see `open_dataset`. Its labels are used where it has some.
        labels: a labelled set beside it, for example a list of "path label" lines; None: the labels of `data`.
        folder: the splits are written there, one list each.
        test_data: labelled images to test on; None: the test part of the labelled set, or a part that is split off.

    Raises:
        ValueError: nothing can be read, or the labels cannot be split.
    """
    chosen = {"access": access}
    pool_set = open_dataset(data, "train", **chosen)
    pool_set.read_labels()
    if pool_set.stream:
        raise ValueError(f"{pool_set.title} is a pipeline: worth-it splits images by number; give a folder or shards")
    own = labels is None and (pool_set.labels >= 0).any()
    labelled_set = pool_set if own else None if labels is None else open_dataset(labels, "train", **chosen)
    if labels is not None and not (labels_of(labels, access) >= 0).any():
        raise ValueError(f"--labels {labels} has no label: give a list of lines 'path label', or a folder per class")
    pool = _first_look(pool_set, _spread(pool_set, labelled_set is pool_set), say)
    facts: dict = {"pool": pool.facts}
    if labelled_set is None:
        if len(pool.rows) < FEWEST:
            raise ValueError(
                f"{pool_set.title} has {len(pool.rows)} readable images and no labels: at least {FEWEST} are needed to"
                " say anything of them"
            )
        write_list(pool_set, pool.rows, folder / "pretrain.tsv")
        facts |= {"labelled": 0, "pretrain_images": len(pool.rows)}
        return Survey(facts, part_of(pool_set, pool.rows))
    train = pool if labelled_set is pool_set else _first_look(labelled_set, np.arange(len(labelled_set)), say)
    train = train.only(labelled_set.labels[train.rows] >= 0)
    test_set, test = _test_part(data if labels is None else labels, test_data, labelled_set, train, chosen, say)
    return _split(facts, pool_set, pool, labelled_set, train, test_set, test, folder)


@dataclass
class _Look:
    """Readable rows of a set, and the signature (N, 5) of each."""

    rows: np.ndarray
    signatures: np.ndarray
    facts: dict

    def only(self, kept: np.ndarray) -> _Look:
        return _Look(self.rows[kept], self.signatures[kept], self.facts)


def _spread(dataset: ImageDataset, keep_labelled: bool) -> np.ndarray:
    """All rows, or MOST_POOL of them drawn by a fixed seed; labelled ones in equal shares of each class."""
    if len(dataset) <= MOST_POOL:
        return np.arange(len(dataset))
    labels = dataset.labels if keep_labelled else np.zeros(len(dataset), np.int64)
    return draw_subset(labels, MOST_POOL / len(dataset), 0)


def _first_look(dataset: ImageDataset, rows: np.ndarray, say: Callable) -> _Look:
    readable, found, sizes = [], [], []
    faults: Counter[str] = Counter()
    names: list[str] = []
    for row in rows.tolist():
        try:
            pixels = dataset.read(row)
        except UnreadableImage as error:
            faults[error.reason] += 1
            names += [dataset.name(row)] if len(names) < 3 else []
            continue
        readable.append(row)
        sizes.append(pixels.shape[:2])
        found.append(signatures(_thumbnail(pixels))[0].numpy())
    if not readable:
        raise ValueError(f"none of the {len(rows):,} images of {dataset.title} can be read, first: {'; '.join(names)}")
    sides = np.array(sizes)
    short, classes = sides.min(axis=1), dataset.labels[readable]
    counts = np.unique(classes[classes >= 0], return_counts=True)[1]
    facts = {
        "title": dataset.title,
        "images": len(dataset),
        "looked_at": len(rows),
        "unreadable": dict(faults),
        "first_unreadable": names,
        "short_side": {"least": int(short.min()), "median": int(np.median(short)), "most": int(short.max())},
        "labelled": int((classes >= 0).sum()),
        "classes": len(counts),
        "images_a_class": {"least": int(counts.min()), "most": int(counts.max())} if len(counts) else None,
        "fingerprint": dataset.fingerprint,
    }
    say(_described(facts))
    return _Look(np.array(readable), np.stack(found), facts)


def _thumbnail(pixels: np.ndarray) -> torch.Tensor:
    """(H, W, C) -> (1, C, THUMBNAIL, THUMBNAIL) of the same type: copies of other sizes then look alike."""
    image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    size = (THUMBNAIL, THUMBNAIL)
    small = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True).round()
    return small.to(torch.uint8 if pixels.dtype == np.uint8 else torch.uint16)


def _described(facts: dict) -> str:
    sides, spread = facts["short_side"], facts["images_a_class"]
    told = f"  data     {facts['title']}: {facts['images']:,} images, short side {sides['least']}–{sides['most']} px"
    if facts["looked_at"] < facts["images"]:
        told += f", {facts['looked_at']:,} of them are used"
    if bad := sum(facts["unreadable"].values()):
        told += f"; {bad} cannot be read and are left out ({', '.join(facts['first_unreadable'])})"
    if spread is None:
        return told + "; no labels"
    return told + f"; {facts['labelled']:,} labelled, {facts['classes']} classes of {spread['least']}–{spread['most']}"


def _test_part(
    source, test_data, labelled_set, train: _Look, chosen: dict, say
) -> tuple[ImageDataset, _Look | np.ndarray]:
    """(the set that test images come from, a look at it; or positions in `train` that are split off)."""
    if test_data is None and "test" not in labelled_set.splits:
        labels = torch.from_numpy(labelled_set.labels[train.rows])
        positions = hold_out(labels, TEST_SHARE, 0).numpy()
        if not len(positions):
            raise ValueError(f"no class of {labelled_set.title} has two images: nothing can be tested")
        return labelled_set, positions[_at_most(labels.numpy()[positions])]
    from_test = match_labels(labelled_set, open_dataset(source if test_data is None else test_data, "test", **chosen))
    rows = np.flatnonzero(from_test.labels >= 0)
    return from_test, _first_look(from_test, rows[_at_most(from_test.labels[rows])], say)


def _at_most(labels: np.ndarray) -> np.ndarray:
    return draw_subset(labels, MOST_TEST / len(labels), 0) if len(labels) > MOST_TEST else np.arange(len(labels))


def _split(facts, pool_set, pool: _Look, labelled_set, train: _Look, test_set, test, folder: Path) -> Survey:
    notes = []
    if isinstance(test, np.ndarray):
        rest = np.ones(len(train.rows), bool)
        rest[test] = False
        test, train = train.only(~rest), train.only(rest)
    copies = _copies(train, test)
    train = train.only(~copies)
    tested = np.isin(pool.rows, test.rows) if test_set is pool_set else np.zeros(len(pool.rows), bool)
    near = _copies(pool, test) & ~tested
    used = pool.only(~near & ~tested)
    if copies.any():
        notes.append(f"{int(copies.sum())} labelled training images are copies of test images, or nearly: left out")
    classes, counts = np.unique(labelled_set.labels[train.rows], return_counts=True)
    if len(train.rows) < FEWEST_LABELLED or len(classes) < 2 or not len(used.rows):
        raise ValueError(
            f"{labelled_set.title}: {len(train.rows)} labelled training images of {len(classes)} classes are left"
            f" after {len(test.rows)} test images and {int(copies.sum())} copies of them were set aside; at least"
            f" {FEWEST_LABELLED} of two classes are needed"
        )
    parts = {"test": (test_set, test.rows), "train": (labelled_set, train.rows), "pretrain": (pool_set, used.rows)}
    for name, (dataset, rows) in parts.items():
        write_list(dataset, rows, folder / f"{name}.tsv")
    facts |= {
        "labelled": len(train.rows),
        "test_images": len(test.rows),
        "pretrain_images": len(used.rows),
        "classes": len(classes),
        "least_of_a_class": int(counts.min()),
        "copies_left_out": {"labelled": int(copies.sum()), "pretrain": int(near.sum())},
        "commonest": float(100 * np.unique(test_set.labels[test.rows], return_counts=True)[1].max() / len(test.rows)),
    }
    used_pool, used_train = part_of(pool_set, used.rows), part_of(labelled_set, train.rows)
    return Survey(facts, used_pool, used_train, part_of(test_set, test.rows), notes)


def _copies(train: _Look, test: _Look) -> np.ndarray:
    """(N,) bool: training images that are a test image too, exactly or nearly."""
    found = find_overlap(test.signatures, train.signatures)
    rows = [row for kind in found.values() for row, _ in kind]
    marked = np.zeros(len(train.rows), bool)
    marked[rows] = True
    return marked

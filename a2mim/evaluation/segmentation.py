"""Semantic segmentation on frozen maps: the parts that its protocols share, from images and masks to a result.

The test set is used to report, never to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from a2mim.batchnorm import batchnorm_statistics, calibrate_batchnorm, has_batchnorm, load_statistics
from a2mim.data.masks import Masked, open_masked
from a2mim.evaluation import seg_pictures
from a2mim.evaluation.calibration import BATCH, IMAGES
from a2mim.evaluation.cells import MapReader, map_of, noise
from a2mim.evaluation.dense import resized
from a2mim.evaluation.encoder import Encoder
from a2mim.evaluation.identity import hash_of
from a2mim.evaluation.miou import confusion, interval, ious, scores
from a2mim.processes.leading import Share, spread
from a2mim.protocols import Protocol
from a2mim.text import ProgressBar

SPLIT_OFF = 0.2  # of the images, to test on where there is no test set
_MOST_CLASSES = 4096


@dataclass
class SegmentationTask:
    """A frozen encoder, training and test images with masks, and how ids are read.

    Args:
        encoder, reader: the network and its map.
        size: (H, W) in pixels that images are squashed to.
        train, test: images with masks; ids after `labels`.
        n_classes: C.
        ignore: id of pixels that do not count.
        zero_is_ignored: 0 is ignored, and every other id is one too high.
        interpolation: of the images.
        split_rows: rows of `whole` that were split off to test on; None: there was a test set.
        whole: the images that were given to train on.
    """

    encoder: Encoder
    reader: MapReader
    size: tuple[int, int]
    train: Masked
    test: Masked
    n_classes: int
    ignore: int
    zero_is_ignored: bool
    interpolation: str
    batch_size: int = 64
    split_rows: np.ndarray | None = None
    whole: Masked | None = None

    def item(self, dataset: Masked, i: int) -> tuple[np.ndarray, np.ndarray]:
        """((H, W, 3) uint8, (H, W) int64 in 0 … C-1 or `ignore`); ValueError with the name for an id out of range."""
        image, ids = dataset.read(i)
        labels = renumbered(ids, self.ignore, self.zero_is_ignored)
        wrong = labels[(labels != self.ignore) & (labels >= self.n_classes)]
        if len(wrong):
            raise ValueError(
                f"the mask of {dataset.names[i]} holds class {wrong[0]}, and the training set has the classes 0 to"
                f" {self.n_classes - 1}; pixels that do not count have the id {self.ignore}"
            )
        return image, labels

    def items(self, dataset: Masked, rows, what: str) -> Iterator[tuple[Tensor, list[np.ndarray]]]:
        """((B, 3, S, S) uint8, masks in their own sizes), in order."""
        for some in ProgressBar(self._batches(rows), desc=what, unit="batch", leave=False):
            yield self._read(dataset, some)

    def _batches(self, rows) -> list[np.ndarray]:
        return np.array_split(np.asarray(rows), max(1, -(-len(rows) // self.batch_size)))

    def _read(self, dataset: Masked, rows: np.ndarray) -> tuple[Tensor, list[np.ndarray]]:
        pairs = [self.item(dataset, int(i)) for i in rows]
        images = torch.stack([resized(image, self.size, self.interpolation) for image, _ in pairs])
        return images, [mask for _, mask in pairs]

    def maps(self, dataset: Masked, rows, what: str) -> Iterator[tuple[Tensor, np.ndarray]]:
        """((h·w, D) float32 cells on the device, mask in its own size) of every image, in order."""
        asked = (batchnorm_statistics(self.encoder.model), dataset is self.train, np.asarray(rows))
        batches = spread("maps", asked, self._share(dataset, rows))
        total = len(self._batches(rows))
        for cells, masks in ProgressBar(batches, total=total, desc=what, unit="batch", leave=False):
            yield from zip(cells.to(self.encoder.device), masks, strict=True)

    def _share(self, dataset: Masked, rows) -> Share:
        """This process's share of the maps of some rows: ((B, h·w, D) cells, masks) a batch."""
        run = map_of(self.encoder.model, self.reader)

        def share(rank: int, size: int) -> Iterator[tuple[Tensor, list[np.ndarray]]]:
            for some in self._batches(rows)[rank::size]:
                images, masks = self._read(dataset, some)
                cells = run(self.encoder.normalized(images)).flatten(2).transpose(1, 2)
                yield cells.cpu() if size > 1 else cells, masks

        return share

    def helpers(self) -> dict[str, Callable[..., Share]]:
        """See `a2mim.processes.leading.lead`."""

        def maps(statistics: dict[str, Tensor], of_train: bool, rows: np.ndarray) -> Share:
            load_statistics(self.encoder.model, statistics)
            return self._share(self.train if of_train else self.test, rows)

        return {"maps": maps}


def open_task(source, protocol: Protocol, data, test_data=None, img_size=None, **options) -> SegmentationTask:
    """Opens everything that a segmentation protocol needs; BatchNorm is calibrated on training images.

    Without a test set a fifth of the images is split off, always the same ones.

    Raises:
        ValueError: a single image and no test set, a size that the stride does not divide, masks without classes.
    """
    c = protocol.constants
    whole, split_rows = open_masked(data, "train"), None
    if test_data is None and not whole.has_split:
        if len(whole) < 2:
            raise ValueError(f"{whole.title} has a single image, so none can be split off: give --test-data.")
        split_rows, kept = split_images(len(whole), SPLIT_OFF, 0)
        train, test = whole.part(kept), whole.part(split_rows)
    else:
        train, test = whole, open_masked(data if test_data is None else test_data, "test")
    size = c.get("crop") if img_size is None else img_size
    encoder = Encoder(source, options.get("device"), size, options.get("allow_partial", False), options.get("seed", 0))
    if encoder.channels != 3:
        raise ValueError(f"{protocol.name} reads images of 3 channels; {source} takes {encoder.channels}.")
    reader = MapReader(encoder.model, noise(3, encoder.img_size, encoder.device), c["map"])
    for side, cells in zip(encoder.img_size, reader.grid, strict=True):
        if side % cells:
            stride = round(reader.stride)
            raise ValueError(
                f"images of {side} px do not divide into {cells} cells of {source}: give --img-size"
                f" {max(1, round(side / stride)) * stride}"
            )
    task = SegmentationTask(
        *(encoder, reader, encoder.img_size, train, test, _MOST_CLASSES, c["ignore"], c["zero_is_ignored"]),
        interpolation=c["interpolation"],
        batch_size=options.get("batch_size", 64),
        split_rows=split_rows,
        whole=whole,
    )
    task.n_classes = _count_classes(task, whole)
    if not encoder.clean_statistics and has_batchnorm(encoder.model):
        rows = np.random.default_rng(0).permutation(len(train))[:IMAGES]
        task.batch_size = BATCH
        calibrate_batchnorm(encoder.model, (encoder.normalized(x) for x, _ in task.items(train, rows, "calibration")))
        task.batch_size = options.get("batch_size", 64)
    return task


def renumbered(ids: np.ndarray, ignore: int, zero_is_ignored: bool) -> np.ndarray:
    """Ids as classes from 0 on, or `ignore`."""
    if not zero_is_ignored:
        return ids
    return np.where((ids == 0) | (ids == ignore), ignore, ids - 1)


def _count_classes(task: SegmentationTask, images: Masked) -> int:
    """As classes.txt lists them, else up to the largest id of these images' masks."""
    if images.class_names:
        return len(images.class_names)
    largest = -1
    for i in range(len(images)):
        labels = task.item(images, i)[1]
        judged = labels[labels != task.ignore]
        largest = max(largest, int(judged.max()) if len(judged) else -1)
    if largest < 0:
        raise ValueError(f"every pixel of {images.title} is ignored (id {task.ignore}): there is no class.")
    return largest + 1


def split_images(n: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows that choose, rows to train on); a single image serves as both."""
    order = np.random.default_rng(seed).permutation(n)
    held = max(1, round(n * held_out))
    return (np.sort(order[:held]), np.sort(order[held:])) if n > 1 else (order, order)


def shares(labels: np.ndarray, grid: tuple[int, int], n_classes: int, ignore: int) -> np.ndarray:
    """(cells, C) float32: how much of each cell's pixels has each class; rows of cells without any are 0.

    Args:
        labels: (H, W) in their own size; the grid is laid over the image, and a pixel belongs to the cell there.
    """
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(labels.shape, grid, strict=True))
    cell = rows[:, None] * grid[1] + columns[None, :]
    judged = labels != ignore
    counts = np.bincount(cell[judged] * n_classes + labels[judged], minlength=grid[0] * grid[1] * n_classes)
    counts = counts.reshape(-1, n_classes).astype(np.float32)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def oracle(labels: np.ndarray, grid: tuple[int, int], n_classes: int, ignore: int) -> np.ndarray:
    """(H, W): the commonest class of each cell at all its pixels, the best that one class a cell can be."""
    best = shares(labels, grid, n_classes, ignore).argmax(1).reshape(grid)
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(labels.shape, grid, strict=True))
    return best[rows[:, None], columns[None, :]]


def result_of(
    task: SegmentationTask,
    protocol: Protocol,
    predicted: Iterable[np.ndarray],
    chosen: dict,
    out: Path | None,
) -> dict:
    """Judges every test image, in its own size, and gathers what `write_result` takes.

    Args:
        predicted: (H, W) classes of every test image in order, in the size of its mask.
        chosen: what was chosen on held-out images, and other facts.
        out: folder of the results, for the pictures; None draws none.
    """
    counts, best, drawn = [], [], {}
    rows = () if out is None else seg_pictures.drawn_rows(len(task.test))
    for i, guess in enumerate(predicted):
        image, truth = task.item(task.test, i)
        counts.append(confusion(guess, truth, task.n_classes, task.ignore))
        ideal = oracle(truth, task.reader.grid, task.n_classes, task.ignore)
        best.append(confusion(ideal, truth, task.n_classes, task.ignore))
        if i in rows:
            drawn[i] = (image, truth, guess)
    each, c = np.stack(counts), protocol.constants
    found, height_width = scores(each.sum(0)), task.reader.grid
    per_image = [float(np.nanmean(row)) if not np.isnan(row).all() else None for row in ious(each)]
    result = {
        "protocol": protocol.name,
        "protocol_hash": protocol.hash,
        "overridden": protocol.overridden,
        "constants": c,
        "sources": list(protocol.sources),
        "metric": "mIoU %",
        "top1_last": found["miou"],
        "top1_best": None,
        "interval": list(interval(each)),
        **found,
        "oracle": scores(np.sum(best, 0))["miou"],
        "cells": list(height_width),
        "stride": task.reader.stride,
        "scores": {name: s for name, s in zip(task.test.names, per_image, strict=True) if s is not None},
        "correct": "",
        "n_test": len(each),
        "n_train": len(task.train),
        "n_classes": task.n_classes,
        "class_names": task.train.class_names,
        "encoder": task.encoder.name,
        "encoder_hash": task.encoder.hash,
        "loading": task.encoder.loading,
        "loaded": task.encoder.loaded,
        "data": task.train.title,
        "test_data": task.test.title,
        "data_fingerprint": hash_of([task.train.names, task.test.names]),
        "img_size": list(task.size),
        **chosen,
    }
    result["note"] = (
        f"{protocol.name} has {height_width[0]}×{height_width[1]} cells an image; the right class for every cell gives"
        f" mIoU {result['oracle']:.1f} (the oracle of the grid)"
    )
    if out is not None:
        result |= _draw(drawn, task, result, out)
    return result


def _draw(drawn: dict[int, tuple], task: SegmentationTask, result: dict, out: Path) -> dict:
    """Writes a picture of each of these test images.

    Args:
        drawn: row of the test set -> (image, truth, prediction).

    Returns:
        "pictures": of each image its file (relative to `out`), name and mIoU, None where no pixel counts; and "legend":
        the colours of all classes that they show.
    """
    names = task.train.class_names or task.test.class_names
    labels = seg_pictures.class_labels(task.n_classes, names if names and len(names) == task.n_classes else None)
    identity = hash_of([result[key] for key in ("protocol_hash", "encoder_hash", "data_fingerprint")])
    pictures, shown = [], set()
    for number, (row, (image, truth, guess)) in enumerate(drawn.items(), 1):
        file = f"{seg_pictures.FOLDER}/{result['protocol']}-{identity}-{number}.png"
        seg_pictures.save(seg_pictures.draw(image, truth, guess, labels, task.ignore), out / file)
        name = task.test.names[row]
        pictures.append({"file": file, "name": name, "miou": result["scores"].get(name)})
        shown |= seg_pictures.seen(truth, guess, task.ignore)
    return {"pictures": pictures, "legend": seg_pictures.legend(shown, labels, task.ignore)}

"""An attentive probe on cached cells; the learning rate is chosen inside the training set."""

from __future__ import annotations

import tempfile
from typing import IO

import numpy as np
import torch
from torch import Tensor

from a2mim.evaluation.attentive import AttentiveHeads, fitting_queries
from a2mim.evaluation.features import check_features, refuse_below_one
from a2mim.evaluation.linear import epochs_for, hold_out, schedule
from a2mim.evaluation.passes import CentralViews
from a2mim.evaluation.probe import Labelled, Stack, probe
from a2mim.protocols import read_protocol

PROTOCOLS = ("efficient-probe", "efficient-probe-published", "attentive-capi")
PART = "cells"


def attentive_probe(
    train_cells: Tensor,
    train_labels: Tensor,
    test_cells: Tensor,
    test_labels: Tensor,
    protocol: str = "efficient-probe",
    track_best: bool = True,
    device=None,
    **overrides,
) -> dict:
    """A probe by a protocol's rule, without new crops; the head that is best on held-out training images is reported.

    Args:
        train_cells, test_cells: (N, n, D) and (M, n, D) float of any precision, n cells an image.
        train_labels, test_labels: (N,) and (M,) int64 >= 0, any values.
        protocol: one of PROTOCOLS.
        track_best: also test every head after every epoch.
        device: where the heads are trained; None: where the cells are.
        overrides: constants of the protocol.

    Returns:
        see `probe`: "top1", "top5", "correct" of the last epoch; "best_top1" and "best_epoch" are chosen on the test
        set, so they flatter.

    Raises:
        ValueError: cells and labels that do not belong together, or constants out of range.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} is unknown: choose one of {', '.join(PROTOCOLS)}.")
    if train_cells.ndim != 3 or test_cells.ndim != 3:
        shapes = f"{tuple(train_cells.shape)} and {tuple(test_cells.shape)}"
        raise ValueError(f"an attentive probe takes cells (images, cells, channels), got {shapes}.")
    c = read_protocol(protocol, overrides).constants
    refuse_below_one(epochs=c["epochs"], batch_size=c["batch_size"], least_steps=c.get("least_steps"))
    dim, device = train_cells.shape[2], train_cells.device if device is None else device
    train, test = (
        Labelled({PART: train_cells.flatten(1)}, train_labels),
        Labelled({PART: test_cells.flatten(1)}, test_labels),
    )
    check_features(train.parts[PART], train_labels, test.parts[PART], test_labels)
    classes = torch.unique(train_labels)
    held, kept, note = split_off(train_labels, c)
    judged = held if len(held) else kept
    training = CentralViews(train, kept, classes, c["batch_size"], c["seed"], device).training_pass()
    stack = attentive_stack("cells", (PART,), dim, len(classes), c, device)
    length = c.get("epoch_length") or training.steps
    epochs = epochs_for(c, length)
    found = probe(
        [stack],
        training,
        classes,
        Labelled({PART: train.parts[PART][judged]}, train_labels[judged]),
        test,
        epochs,
        schedule(c | {"epochs": epochs}),
        length,
        per_iteration=True,
        track_best=track_best,
    )
    if not len(held):
        found["held_out_top1"] = None  # the held-out images were training images too
    notes = "; ".join(filter(None, (found.pop("note", ""), note)))
    return {
        "protocol": protocol,
        **found,
        **({"note": notes} if notes else {}),
        "queries": queries_of(c, dim),
        "cells": train_cells.shape[1],
        "epochs": epochs,
        "seed": c["seed"],
        "n_train": len(kept),
        "held_out": len(held),
        "n_test": len(test_labels),
        "n_classes": len(classes),
    }


def attentive_stack(name: str, parts: tuple[str, ...], dim: int, n_classes: int, c: dict, device) -> Stack:
    """Heads of all rates and weight decays of a protocol's constants."""
    constants = c | ({"queries": queries_of(c, dim)} if c["probe"] == "efficient" else {})
    heads = AttentiveHeads(c["base_lrs"], dim, n_classes, constants, c["seed"], device)
    return Stack(name, parts, heads, list(heads.lrs))


def queries_of(c: dict, dim: int) -> int:
    """EP's number of queries: the protocol's, or the largest below that divides the channels; one for CAPI's probe."""
    return fitting_queries(dim, c["queries"], c["reduction"]) if c["probe"] == "efficient" else 1


def split_off(labels: Tensor, c: dict) -> tuple[Tensor, Tensor, str]:
    """(held-out rows, rows to train on, a note): with one head there is nothing to choose and nothing is held out."""
    every = torch.arange(len(labels))
    if len(c["base_lrs"]) * len(c["weight_decays"]) == 1:
        return torch.arange(0), every, ""
    held = hold_out(labels, c["held_out"], c["seed"])
    if not len(held):
        return held, every, "no class has two training images, so the head was chosen by the training images"
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[held] = False
    return held, every[kept], ""


class CellFile:
    """Cells of many images in a temporary file: they are as large as images, and may not fit into memory."""

    def __init__(self) -> None:
        self.file: IO[bytes] | None = None
        self.shape, self.rows = (0, 0), 0

    def add(self, cells: Tensor) -> None:
        """(B, n, D) of one shape each time."""
        self.file = self.file or tempfile.TemporaryFile(prefix="a2mim-cells-")  # noqa: SIM115  `all` closes it
        self.shape = (cells.shape[1], cells.shape[2])
        self.file.write(cells.cpu().half().numpy().tobytes())
        self.rows += len(cells)

    def all(self) -> Tensor:
        """(N, n, D) float16, memory-mapped. Closes the file: nothing can be added afterwards."""
        if self.file is None:
            return torch.empty(0, *self.shape, dtype=torch.float16)
        self.file.flush()
        found = torch.from_numpy(np.memmap(self.file, np.float16, "c", shape=(self.rows, *self.shape)))
        self.file.close()  # the mapping lives on
        return found

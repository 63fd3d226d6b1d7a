"""One encoder, one labelled pair of sets: k-NN, linear and attentive probe from the same pass, with intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn

from a2mim.evaluation.attentive_probe import CellFile, attentive_probe
from a2mim.evaluation.cells import MapReader, noise
from a2mim.evaluation.features import (
    frozen,
    pooling_name,
    pooling_of,
    refuse_below_one,
    unreadable_of,
)
from a2mim.evaluation.knn import check_constants, knn
from a2mim.evaluation.linear import linear_probe
from a2mim.evaluation.parts import Part, counted, in_this_process, share_of
from a2mim.evaluation.taps import CELLS, tap
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from a2mim.processes.leading import Share
from a2mim.protocols.intervals import wilson_interval
from a2mim.text import ProgressBar

MOST_SIDE = 7  # cells: a larger map is averaged down to it, so that judging stays short and its file small
Extracted = tuple[Tensor, Tensor, Tensor | None]  # features (N, D), labels (N,), cells (N, n, D) or None
# of efficient-probe, shortened; its `least_steps` holds
ATTENTIVE: dict[str, Any] = {"epochs": 10, "warmup_epochs": 1, "base_lrs": [0.001, 0.01]}


def judge(
    model: nn.Module,
    train_loader: Iterable,
    test_loader: Iterable,
    k: int = 20,
    temperature: float = 0.07,
    epochs: int = 100,
    pooling: str = "default",
    seed: int = 0,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    attentive: bool = True,
    spread: Callable[[Share, str], Iterator[Part]] = in_this_process,
) -> dict:
    """{"pooling": …, "unreadable": {reason: count}, "knn": {…}, "linear": {…}, "attentive": {…}}: the protocols'
    results, with "interval" (95 %, percent) of top-1. Images that cannot be read are left out of both sets by their
    loaders. A network without a map of the image has no "attentive" result, and a warning says so.

    `spread` gets this process's share of a pass and "train" or "test", and gives the results of all batches in order;
    several processes may compute them.

    A random network with BatchNorm must be calibrated on the same images before it is judged: the running statistics
    alone change accuracy by points. The caller does that; this function does not change the model.
    """
    check_constants(k, temperature)
    refuse_below_one(epochs=epochs)
    extract = Extract(model, pooling, mean, std, attentive)
    train = extract(train_loader, lambda share: spread(share, "train"))
    test = extract(test_loader, lambda share: spread(share, "test"))
    results = {"knn": nearest(train, test, k, temperature)} | trained_probes(train, test, epochs, seed, extract.device)
    unreadable = unreadable_of(train_loader, test_loader)
    return {"pooling": pooling_name(model, pooling), "unreadable": unreadable} | results


def nearest(train: Extracted, test: Extracted, k: int, temperature: float = 0.07) -> dict:
    """k-NN of what `Extract` returns, with its interval."""
    return _with_interval(knn(*train[:2], *test[:2], k=k, temperature=temperature))


def trained_probes(train: Extracted, test: Extracted, epochs: int = 100, seed: int = 0, device=None) -> dict[str, dict]:
    """Linear and attentive probe of what `Extract` returns, with their intervals; the second needs cells.

    Args:
        epochs: of the linear probe.
        device: where the attentive probe is trained.
    """
    results = {"linear": linear_probe(*train[:2], *test[:2], epochs=epochs, seed=seed)}
    (_, labels, cells), (_, test_labels, test_cells) = train, test
    if cells is not None and test_cells is not None:
        results["attentive"] = attentive_probe(
            cells, labels, test_cells, test_labels, track_best=False, device=device, seed=seed, **ATTENTIVE
        )
    return {name: _with_interval(result) for name, result in results.items()}


def _with_interval(result: dict) -> dict:
    result["interval"] = wilson_interval(int(result["correct"].sum()), result["n_test"])
    return result


class Extract:
    """A loader -> (N, D) features, (N,) labels and (N, n, D) cells or None, all from one forward pass an image.

    Args:
        pooling: of the features, see `a2mim.evaluation.extract_features`.
        attentive: also take the cells of the last map, which an attentive probe needs; a network without a map of the
            image has none, and a warning says so.

    A call may take `spread`: this process's share of the pass -> the results of all batches, in order.
    """

    def __init__(self, model: nn.Module, pooling: str, mean, std, attentive: bool):
        self.model, self.pooling, self.pixels = model, pooling, (mean, std)
        pooling_of(model, pooling)  # raises an error for parts that the model does not have
        self.device = next(model.parameters()).device
        self.attentive = attentive
        self.run: Callable[[Tensor], dict[str, Tensor]] | None = None
        self.channels = 0

    def __call__(self, loader: Iterable, spread: Callable[[Share], Iterator[Part]] = in_this_process) -> Extracted:
        features, labels, cells = [], [], CellFile()
        parts = counted(loader, spread(self.share(loader)), len(getattr(loader, "indices", ())))
        batches = len(loader) if isinstance(loader, Sized) else None
        for part in ProgressBar(parts, total=batches, desc="features", leave=False, unit="batch"):
            features.append(part.found[self.pooling].cpu())
            labels.append(part.labels.cpu())
            if CELLS in part.found:
                cells.add(part.found[CELLS])
        if not features:
            raise ValueError("the loader handed out no batch: give a set with at least one image.")
        return torch.cat(features), torch.cat(labels), cells.all() if cells.rows else None

    def share(self, loader: Iterable) -> Share:
        """This process's share of a pass."""
        return share_of(loader, self.compute)

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        """Stored images (B, C, H, W) -> {pooling: (B, D)}, and {CELLS: (B, n, D)} where the network has a map."""
        images = normalize(images.to(self.device, non_blocking=True), *self.pixels)
        self.run = self.run or self._tap(images)
        with frozen(self.model):
            found = self.run(images)
        if self.attentive:
            found[CELLS] = found[CELLS].unflatten(1, (-1, self.channels))
        return found

    def _tap(self, images: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
        """What reads the features of images of this size."""
        if self.attentive:
            try:
                reader = MapReader(
                    self.model,
                    noise(images.shape[1], (images.shape[2], images.shape[3]), self.device),
                    most_side=MOST_SIDE,
                )
                self.channels = reader.channels
                return tap(self.model, (self.pooling, CELLS), {CELLS: reader})
            except ValueError as error:
                warnings.warn(f"no attentive probe: {error}", stacklevel=5)
                self.attentive = False
        return tap(self.model, (self.pooling,))

"""The protocol `robustness`: one linear probe of clean images, then damage to test images, one result a kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from a2mim.evaluation import robustness
from a2mim.evaluation.calibration import calibration_rows
from a2mim.evaluation.cells import map_of
from a2mim.evaluation.context import EvalContext
from a2mim.evaluation.feature_set import FeatureSet
from a2mim.evaluation.features import check_features, class_positions
from a2mim.evaluation.linear import best_head, fit, hold_out
from a2mim.evaluation.robustness import Damaged
from a2mim.evaluation.taps import CELLS
from a2mim.protocols import Protocol
from a2mim.protocols.intervals import wilson_interval


def run(context: EvalContext, protocol: Protocol) -> list[dict]:
    """Calibration, occlusion (random, most and least salient), shuffled tiles, and corruptions."""
    c = protocol.constants
    train, test = (context.features(split, (c["pooling"],), c) for split in ("train", "test"))
    probe = _Probe(context, train, test, c)
    common = {
        "protocol_hash": protocol.hash,
        "overridden": protocol.overridden,
        "constants": c,
        "sources": list(protocol.sources),
        "top1_best": None,
        "correct": "",
        "base_lr": probe.lr,
        "pooling": context.pooling(c),
        **context.about(c),
    }
    honest = probe.calibration()
    results = [
        common
        | asdict(honest)
        | {"protocol": f"{protocol.name}/calibration", "metric": "ECE %", "top1_last": honest.ece}
        | {"interval": list(honest.interval)}
    ]
    for found in probe.damaged():
        low, high = wilson_interval(round(found.mean / 100 * probe.n_images), probe.n_images)
        results.append(
            common
            | {"protocol": f"{protocol.name}/{found.name.replace(', ', '-').replace(' ', '-')}"}
            | {"metric": "mean top-1 % under damage", "top1_last": found.mean, "interval": [low, high]}
            | {"n_test": probe.n_images, "clean": found.clean, "note": probe.note}
            | {"accuracy": {f"{k:g}": v for k, v in found.accuracy.items()}}
            | {"ratio": {f"{k:g}": v for k, v in found.ratio.items()}}
            | {"spread": {f"{k:g}": v for k, v in found.spread.items()}}
        )
    return results


class _Probe:
    """A linear probe on standardised features, as a classifier of images."""

    def __init__(self, context: EvalContext, train: FeatureSet, test: FeatureSet, c: dict):
        self.context, self.test, self.c = context, test, c
        part = c["pooling"]
        features, labels = train.features(part).float(), train.labels
        check_features(features, labels, test.features(part), test.labels)
        self.classes, targets = torch.unique(labels, return_inverse=True)
        held = hold_out(labels, c["held_out"], c["seed"])
        if not len(held):
            raise ValueError("robustness needs a class with two training images: the temperature is fitted on one.")
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[held] = False
        mean, std = features[kept].mean(0), features[kept].std(0, correction=0)
        self.mean, self.scale = mean, torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), 0)
        normal = (features - self.mean) * self.scale
        size = min(c["batch_size"], int(kept.sum()))
        lrs = [lr * size / 256 for lr in c["base_lrs"]]
        heads = fit(normal[kept], targets[kept], lrs, c["epochs"], size, len(self.classes), c["seed"])
        best = best_head(heads, normal[held], targets[held])[0]
        self.weight, self.bias, self.lr = heads.weight[best], heads.bias[best, :, 0], c["base_lrs"][best]
        self.held = self.logits(features[held]), targets[held]
        known = np.flatnonzero((class_positions(self.classes, test.labels) >= 0).numpy())
        if not len(known):
            raise ValueError("no test image has a class of the training set.")
        self.known = torch.from_numpy(known)
        self.rows = np.sort(test.rows[known][calibration_rows(context.test, c["images"], 0, np.arange(len(known)))])
        self.n_images = len(self.rows)
        self.note = f"damage was drawn with three seeds on {self.n_images} test images of {context.img_size[0]} px"
        if min(context.img_size) < 224:
            self.note += "; corruptions are made for 224 px and are harsher here"

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        weight = self.weight.to(features.device)
        moved = (features - self.mean.to(features.device)) * self.scale.to(features.device)
        return moved @ weight.T + self.bias.to(features.device)

    def calibration(self) -> robustness.Calibration:
        features = self.test.features(self.c["pooling"])[self.known].float()
        targets = class_positions(self.classes, self.test.labels)[self.known]
        return robustness.calibration(*self.held, self.logits(features), targets, self.c["seed"])

    def damaged(self) -> list[Damaged]:
        context, encoder = self.context, self.context.encoder
        view = (self.c["resize"], self.c["interpolation"])
        shown = [(b["images"], class_positions(self.classes, b["labels"])) for b in self._view(*view)]
        clean = [(encoder.normalized(images), labels) for images, labels in shown]
        found = []
        try:
            reader = encoder.reader(CELLS)
        except ValueError:  # a network without a map of the image
            reader = None
        if reader is not None:
            run = map_of(context.model, reader)
            norms: Callable[[Tensor], Tensor] = lambda images: run(images).norm(dim=1).flatten(1)  # noqa: E731
            for how in ("random", "most", "least"):
                found.append(robustness.occlusion(self.classify, clean, reader.grid, how, norms))
        found.append(robustness.patch_shuffle(self.classify, clean))
        if encoder.channels == 3 and shown[0][0].dtype == torch.uint8:
            for name in self.c["corruptions"]:
                found.append(robustness.corruption(self.classify, shown, name, encoder.normalized))
        return found

    def _view(self, resize: float, interpolation: str):
        return self.context.view(self.context.test, self.rows, resize, interpolation)

    def classify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, classes)."""
        return self.logits(self.context.encoder.pooled(self.c["pooling"], images))

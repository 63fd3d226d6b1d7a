"""Probes while an encoder is pre-trained: k-NN, and where time allows a linear and an attentive probe.

They see a few images, the same ones each time, and take at most 2 % of the time: with the health checks 3 %.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from torch import Tensor

from a2mim.batchnorm import batchnorm_statistics, calibrate_batchnorm, load_statistics, unsynchronise
from a2mim.data import EvalLoader
from a2mim.data.crops import height_and_width
from a2mim.data.faults import Faults
from a2mim.data.records import Batch
from a2mim.engine.hooks import LogHook
from a2mim.engine.pretrain_settings import Judging, PretrainData, PretrainSettings
from a2mim.engine.refine_settings import RefineData, RefineSettings
from a2mim.evaluation.calibration import BATCH, IMAGES, calibration_rows
from a2mim.evaluation.judge import Extract, Extracted, nearest, trained_probes
from a2mim.pixels import Preprocessing
from a2mim.processes.group import agree
from a2mim.processes.leading import Share, lead, spread

SHARE = 0.02  # of the time since the start, at most; the health checks have another 0.01
LEAST, MOST, PART = 500, 10_000, 50  # how many images, where the recipe does not say: a 50th, within bounds
KEPT_BYTES = 2**28  # of cropped images that stay in memory; more are read anew each time
FORWARD = 0.6  # a forward pass costs no more than this share of a training step: the first time's cost, guessed
PROBES = 1.0, 2.0  # the trained probes' first cost, guessed: seconds at least, and that many times the k-NN's


def online_knn(settings: PretrainSettings | RefineSettings, train_set, test_set) -> OnlineKNN | None:
    """The k-NN on the way; None where the recipe wants none, nothing can be judged, or the images are a stream."""
    if not settings.judge.every_epochs or test_set is None or train_set.stream:
        return None
    return OnlineKNN(train_set, test_set, settings.judge, settings.data, settings.seed)


class OnlineKNN(Hook):
    """Judges a copy of the encoder at the ends of epochs, and leaves training as it is.

    All processes compute the features; the first one trains the probes, and writes.

    The cost of all judging, including the next one, stays under SHARE of the time. An epoch whose judging would exceed
    it is skipped; so are the linear and the attentive probe where only the k-NN has time. So the clock decides which
    epochs are judged, but not the results.
    BatchNorm is calibrated on images of the training half, see `a2mim.evaluation.calibration`.

    Args:
        train_set, test_set: labelled; half of the images come from each.
        judge: the recipe's `judge`.
        data: the recipe's `data`.
        seed: of which images, and of the trained probes.
    """

    priority = 80  # after the log's line, before the checkpoint, which carries the history

    def __init__(self, train_set, test_set, judge: Judging, data: PretrainData | RefineData, seed: int):
        self.every, self.k, self.seed = judge.every_epochs, judge.k, seed
        assert data.img_size is not None and data.mean is not None and data.std is not None  # the task filled them in
        self.pixels = Preprocessing(data.mean, data.std, height_and_width(data.img_size))
        images = judge.images or min(MOST, max(LEAST, len(train_set) // PART))
        bank = calibration_rows(train_set, max(1, images // 2), seed, np.flatnonzero(train_set.labels >= 0))
        self.bank = ImageSample(train_set, bank, data.img_size)
        self.queries = ImageSample(test_set, draw_rows(test_set, images // 2, seed), data.img_size)
        self.history: list[dict] = []
        self.cost: float | None = None  # seconds, of the last k-NN
        self.probes_cost: float | None = None  # seconds, of the last two trained probes
        self.spent = self.began = 0.0
        self.passed_over = self.first_step = 0

    def before_train(self, runner) -> None:
        self.began, self.first_step = time.perf_counter(), runner.iter

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not runner.run.loader.ends(runner.iter, self.every):
            return
        wanted = agree(lambda: self.wanted(runner))
        if not wanted:
            return
        with runner.whole(averaged=True) as model:
            network = copied_network(model)
        lead(lambda: self.tell(runner, network, wanted), {"features": partial(self.share, network)})

    def wanted(self, runner) -> str:
        """What keeps to its share of the time: "probes", "knn" alone, or "" for nothing."""
        elapsed = time.perf_counter() - self.began
        cost, left = self.expected(runner, elapsed), SHARE * elapsed - self.spent
        if cost > left:
            self.passed_over += 1
            return ""
        return "probes" if cost + self.expected_of_probes(cost) <= left else "knn"

    def tell(self, runner, network: Any, wanted: str) -> None:
        """Judges, and notes the results."""
        line = {"step": runner.iter, "epoch": round(runner.run.loader.epochs_done(runner.iter), 3)}
        found = self.judge(network, runner.context.device, with_probes=wanted == "probes")
        self.history.append(line | found)
        runner.hook("log", LogHook).append(line | found)
        scalars = {name: value for name, value in found.items() if not isinstance(value, list)}
        runner.visualizer.add_scalars(scalars, step=runner.iter)

    def expected(self, runner, elapsed: float) -> float:
        """Seconds that the k-NN will take: those of the last time, or a guess from the steps so far."""
        if self.cost is not None:
            return self.cost
        steps = runner.iter - self.first_step
        seen = steps * runner.run.loader.plan.global_batch_size / runner.world_size
        return FORWARD * (2 * len(self.bank.indices) + len(self.queries.indices)) * elapsed / max(1, seen)

    def expected_of_probes(self, knn_cost: float) -> float:
        """Seconds that the trained probes will take: those of the last time, or a guess."""
        seconds, times = PROBES
        return max(seconds, times * knn_cost) if self.probes_cost is None else self.probes_cost

    def judge(self, network: Any, device: torch.device, with_probes: bool) -> dict[str, float | list[float]]:
        """Top-1 of each probe in percent, with its interval."""
        started = time.perf_counter()
        bank, queries = self.features(network, device, cells=with_probes)
        results = {"knn": nearest(bank, queries, self.k)}
        self.cost = time.perf_counter() - started
        if with_probes and len(torch.unique(bank[1])) > 1:
            results |= trained_probes(bank, queries, seed=self.seed, device=device)
            self.probes_cost = time.perf_counter() - started - self.cost
        self.spent += time.perf_counter() - started
        found: dict[str, float | list[float]] = {}
        for name, result in results.items():
            found |= {f"{name}_top1": result["top1"], f"{name}_interval": list(result["interval"])}
        return found

    def features(self, network: Any, device: torch.device, cells: bool) -> tuple[Extracted, Extracted]:
        """Of the bank and of the queries, from all processes, after BatchNorm has been calibrated on the bank."""
        batches = self.bank.first(IMAGES // BATCH)
        calibrate_batchnorm(network, (self.pixels.normalize(batch.images.to(device)) for batch in batches))
        extract, statistics = self.extract(network, cells), batchnorm_statistics(network)
        return (
            extract(self.bank, lambda share: spread("features", (True, cells, statistics), share)),
            extract(self.queries, lambda share: spread("features", (False, cells, statistics), share)),
        )

    def extract(self, model, cells: bool) -> Extract:
        return Extract(model, "default", self.pixels.mean, self.pixels.std, attentive=cells)

    def share(self, network: Any, of_bank: bool, cells: bool, statistics: dict[str, Tensor]) -> Share:
        """The share of a process that does not lead, with BatchNorm as the first process has calibrated it."""
        load_statistics(network, statistics)
        return self.extract(network, cells).share(self.bank if of_bank else self.queries)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint["online_knn"] = self.history

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self.history = list(checkpoint.get("online_knn", []))

    def facts(self) -> dict:
        """For summary.json; the share is of this process's time."""
        elapsed = time.perf_counter() - self.began
        facts = {
            "history": self.history,
            "images": [len(self.bank.indices), len(self.queries.indices)],
            "passed_over": self.passed_over,
            "share_of_time": round(self.spent / max(elapsed, 1e-9), 4),
        }
        if self.passed_over and not self.history:
            facts["note"] = (
                f"no k-NN on the way: at every epoch's end it would have taken more than {SHARE:.0%} of the time so far"
            )
        return facts


def copied_network(model: Any) -> Any:
    """A copy of a model's network, which computes without the other processes."""
    return unsynchronise(copy.deepcopy(model.encoder.model))


class ImageSample(EvalLoader):
    """Some images of a set, in central crops, kept in memory where they are few enough.

    Args:
        rows: which images, in the order in which to show them.
        img_size: pixels, or (H, W).
    """

    def __init__(self, dataset, rows: np.ndarray, img_size: int | tuple[int, int]):
        super().__init__(dataset, img_size, resize=None, interpolation="bilinear", batch_size=BATCH, indices=rows)
        self.kept: dict[int, Batch] | None = {}  # by number; None: they are too many

    def share(self, rank: int, size: int) -> Iterator[Batch]:
        """See `EvalLoader.share`."""
        return self._numbered(range(rank, len(self), size), rank, size)

    def first(self, number: int) -> Iterator[Batch]:
        """The first batches, at most `number`."""
        return self._numbered(range(min(number, len(self))), 0, 1)

    def _numbered(self, numbers: range, rank: int, size: int) -> Iterator[Batch]:
        if self.kept is not None and all(number in self.kept for number in numbers):
            self.faults = Faults()  # those of the reading have been counted
            yield from (self.kept[number] for number in numbers)
            return
        for number, batch in zip(numbers, super().share(rank, size), strict=False):
            self._keep(number, batch)
            yield batch

    def _keep(self, number: int, batch: Batch) -> None:
        if self.kept is None:
            return
        self.kept[number] = batch
        if sum(each.images.nbytes for each in self.kept.values()) > KEPT_BYTES:
            self.kept = None


def draw_rows(dataset, number: int, seed: int) -> np.ndarray:
    """Rows, ascending, of at most `number` labelled images, drawn at random."""
    rows = np.flatnonzero(dataset.labels >= 0)
    return np.sort(np.random.default_rng(seed).permutation(rows)[:number])

"""k-NN while an encoder is pre-trained: a few images, the same ones each time, within 3 % of the time."""

from __future__ import annotations

import copy
import itertools
import time

import numpy as np
import torch
from mmengine.hooks import Hook

from a2mim.batchnorm import calibrate_batchnorm, unsynchronise
from a2mim.data import EvalLoader
from a2mim.data.crops import height_and_width
from a2mim.engine.hooks import LogHook
from a2mim.engine.pretrain_settings import Judging, PretrainData, PretrainSettings
from a2mim.engine.processes import first_alone
from a2mim.engine.refine_settings import RefineData, RefineSettings
from a2mim.evaluation import knn
from a2mim.evaluation.calibration import BATCH, IMAGES, calibration_rows
from a2mim.evaluation.features import frozen, pooling_of
from a2mim.pixels import Preprocessing

SHARE = 0.03  # of the time since the start, at most
LEAST, MOST, PART = 500, 10_000, 50  # how many images, where the recipe does not say: a 50th, within bounds
KEPT_BYTES = 2**28  # of cropped images that stay in memory; more are read anew each time
FORWARD = 0.6  # a forward pass costs no more than this share of a training step: the first time's cost, guessed


def online_knn(settings: PretrainSettings | RefineSettings, train_set, test_set) -> OnlineKNN | None:
    """The k-NN on the way; None where the recipe wants none, nothing can be judged, or the images are a stream."""
    if not settings.judge.every_epochs or test_set is None or train_set.stream:
        return None
    return OnlineKNN(train_set, test_set, settings.judge, settings.data, settings.seed)


class OnlineKNN(Hook):
    """Judges a copy of the encoder at the ends of epochs, on the first process, and leaves training as it is.

    The cost of all judging, including the next one, stays under SHARE of the time. An epoch whose judging would exceed
    it is skipped. So the clock decides which epochs are judged, but not the results.
    BatchNorm is calibrated on images of the training half, see `a2mim.evaluation.calibration`.

    Args:
        train_set, test_set: labelled; half of the images come from each.
        judge: the recipe's `judge`.
        data: the recipe's `data`.
        seed: of which images.
    """

    priority = 80  # after the log's line, before the checkpoint, which carries the history

    def __init__(self, train_set, test_set, judge: Judging, data: PretrainData | RefineData, seed: int):
        self.every, self.k = judge.every_epochs, judge.k
        assert data.img_size is not None and data.mean is not None and data.std is not None  # the task filled them in
        self.pixels = Preprocessing(data.mean, data.std, height_and_width(data.img_size))
        images = judge.images or min(MOST, max(LEAST, len(train_set) // PART))
        bank = calibration_rows(train_set, max(1, images // 2), seed, np.flatnonzero(train_set.labels >= 0))
        self.bank = ImageSample(train_set, bank, data.img_size)
        self.queries = ImageSample(test_set, draw_rows(test_set, images // 2, seed), data.img_size)
        self.history: list[dict] = []
        self.cost: float | None = None  # seconds, of the last time
        self.spent = self.began = 0.0
        self.passed_over = self.first_step = 0

    def before_train(self, runner) -> None:
        self.began, self.first_step = time.perf_counter(), runner.iter

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not runner.run.loader.ends(runner.iter, self.every):
            return
        with first_alone() as first:
            if first:
                self.judge_in_time(runner)

    def judge_in_time(self, runner) -> None:
        """Judges, unless that would take more than its share of the time."""
        elapsed = time.perf_counter() - self.began
        if self.spent + self.expected(runner, elapsed) > SHARE * elapsed:
            self.passed_over += 1
            return
        started = time.perf_counter()
        top1 = self.judge(runner)
        self.cost = time.perf_counter() - started
        self.spent += self.cost
        line = {"step": runner.iter, "epoch": round(runner.run.loader.epochs_done(runner.iter), 3), "knn_top1": top1}
        self.history.append(line)
        runner.hook("log", LogHook).append(line)
        runner.visualizer.add_scalars({"knn_top1": top1}, step=runner.iter)

    def expected(self, runner, elapsed: float) -> float:
        """Seconds that judging will take: those of the last time, or a guess from the steps so far."""
        if self.cost is not None:
            return self.cost
        steps = runner.iter - self.first_step
        seen = steps * runner.run.loader.plan.global_batch_size / runner.world_size
        return FORWARD * (2 * len(self.bank) + len(self.queries)) * elapsed / max(1, seen)

    def judge(self, runner) -> float:
        """Top-1 in percent, of the averaged weights where they are kept."""
        model = unsynchronise(copy.deepcopy(runner.averaged.encoder.model))  # the other processes do not judge
        batches = itertools.islice(self.normalized(self.bank, runner.context.device), IMAGES // BATCH)
        calibrate_batchnorm(model, batches)
        pool = pooling_of(model, "default")
        with frozen(model):
            features = [
                torch.cat([pool(images).float().cpu() for images in self.normalized(part, runner.context.device)])
                for part in (self.bank, self.queries)
            ]
        bank_labels, query_labels = self.bank.labels, self.queries.labels
        assert bank_labels is not None and query_labels is not None  # both sets were shown just now
        return knn(features[0], bank_labels, features[1], query_labels, k=self.k)["top1"]

    def normalized(self, part: ImageSample, device):
        return (self.pixels.normalize(images.to(device)) for images in part.batches())

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint["online_knn"] = self.history

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self.history = list(checkpoint.get("online_knn", []))

    def facts(self) -> dict:
        """For summary.json; the share is of this process's time."""
        elapsed = time.perf_counter() - self.began
        facts = {
            "history": self.history,
            "images": [len(self.bank), len(self.queries)],
            "passed_over": self.passed_over,
            "share_of_time": round(self.spent / max(elapsed, 1e-9), 4),
        }
        if self.passed_over and not self.history:
            facts["note"] = (
                f"no k-NN on the way: at every epoch's end it would have taken more than {SHARE:.0%} of the time so far"
            )
        return facts


class ImageSample:
    """Some images of a set, in central crops, kept in memory where they are few enough.

    Args:
        rows: which images, in the order in which to show them.
        img_size: pixels, or (H, W).
    """

    def __init__(self, dataset, rows: np.ndarray, img_size: int | tuple[int, int]):
        self.loader = EvalLoader(
            dataset, img_size, resize=None, interpolation="bilinear", batch_size=BATCH, indices=rows
        )
        self.number = len(rows)
        self.kept: list[torch.Tensor] | None = None
        self.labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.number

    def batches(self):
        """(B, C, H, W) as stored. After the last batch, `labels` has the labels of the readable images."""
        if self.kept is not None:
            yield from self.kept
            return
        labels, kept, size = [], [], 0
        for batch in self.loader:
            labels.append(batch["labels"])
            size += batch["images"].nbytes
            if size <= KEPT_BYTES:
                kept.append(batch["images"])
            yield batch["images"]
        self.labels = torch.cat(labels)
        self.kept = kept if size <= KEPT_BYTES else None


def draw_rows(dataset, number: int, seed: int) -> np.ndarray:
    """Rows, ascending, of at most `number` labelled images, drawn at random."""
    rows = np.flatnonzero(dataset.labels >= 0)
    return np.sort(np.random.default_rng(seed).permutation(rows)[:number])

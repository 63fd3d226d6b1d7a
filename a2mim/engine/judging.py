"""The encoder before and after pre-training, judged on labelled images in the same way."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from a2mim.batchnorm import calibrate_batchnorm
from a2mim.data import EvalLoader
from a2mim.data.crops import height_and_width
from a2mim.engine.pretrain_settings import PretrainSettings
from a2mim.engine.refine_settings import RefineSettings
from a2mim.engine.report import probes, say, sentence
from a2mim.evaluation import calibration, difference, judge, write_result
from a2mim.evaluation.colours import colour_knn
from a2mim.evaluation.identity import hash_encoder, hash_of
from a2mim.pixels import Preprocessing


class NotingLoader:
    """An `EvalLoader` that notes which images it has shown in its last pass."""

    def __init__(self, loader: EvalLoader):
        self.loader, self.dataset, self.indices = loader, loader.dataset, loader.indices
        self.ids: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        self.ids = []
        for batch in self.loader:
            self.ids.append(torch.as_tensor(batch["ids"]))
            yield batch

    @property
    def faults(self):
        return self.loader.faults

    def shown(self) -> Tensor:
        """(M,) positions in `indices`, which ascend, of the readable images."""
        return torch.from_numpy(np.searchsorted(self.indices, torch.cat(self.ids).numpy()))


class Judge:
    """k-NN, linear and attentive probe of frozen features, at the recipe's own image size.

    A network with BatchNorm is calibrated on training images first (see `a2mim.evaluation.calibration`), before and
    after pre-training alike: statistics that fit the images are worth points by themselves, and would otherwise pass
    for learning.
    """

    def __init__(
        self,
        settings: PretrainSettings | RefineSettings,
        train_set,
        test_set,
        device: torch.device,
        batch_size: int = 64,
    ):
        self.settings, self.device, self.batch_size = settings.judge, device, batch_size
        self.work = {"pretrain": "pre-training", "refine": "refinement"}[settings.command]
        data = settings.data
        assert data.img_size is not None and data.mean is not None and data.std is not None  # the task filled them in
        self.pixels = Preprocessing(data.mean, data.std, height_and_width(data.img_size))
        self.img_size, self.seed = data.img_size, settings.seed
        self.train_set = train_set
        self._calibrated: dict[int, tuple] = {}
        self.train = self.loader(train_set, self.settings.train_images)
        self.test = None if test_set is None else NotingLoader(self.loader(test_set, self.settings.test_images))

    def loader(self, dataset, at_most: int) -> EvalLoader:
        """The labelled images (all, where none has a label), or `at_most` of them, drawn by the run's seed."""
        chosen = np.flatnonzero(dataset.labels >= 0)
        chosen = chosen if len(chosen) else np.arange(len(dataset))
        if len(chosen) > at_most:
            chosen = np.sort(np.random.default_rng(self.seed).permutation(chosen)[:at_most])
        return EvalLoader(dataset, self.img_size, resize=None, batch_size=self.batch_size, indices=chosen)

    def calibration_batches(self) -> Iterator[Tensor]:
        """Normalised training images on the device, for BatchNorm's running statistics."""
        loader = calibration.calibration_loader(self.train_set, self.img_size, None, "bicubic")
        return calibration.calibration_batches(loader, lambda x: self.pixels.normalize(x.to(self.device)))

    def calibrated(self, encoder):
        """A copy of the `MaskedEncoder` on the device, with BatchNorm calibrated; made once for each encoder."""
        if id(encoder) not in self._calibrated:
            copied = copy.deepcopy(encoder).to(self.device)
            calibrate_batchnorm(copied.model, self.calibration_batches())
            self._calibrated[id(encoder)] = encoder, copied  # the first keeps the number from being given away
        return self._calibrated[id(encoder)][1]

    def __call__(self, encoder, when: str) -> dict | None:
        """Results of `a2mim.evaluation.judge`, or None where there is nothing to judge on."""
        if self.test is None:
            return None
        results = judge(
            self.calibrated(encoder).model,
            self.train,
            self.test,
            k=self.settings.k,
            seed=self.seed,
            mean=self.pixels.mean,
            std=self.pixels.std,
        )
        say(f"{when:>6} {self.work}: {sentence(results)}")
        return results

    def colours(self) -> float | None:
        """Top-1 in percent of k-NN on histograms of colours; None where there is nothing to judge on."""
        return None if self.test is None else colour_knn(self.train, self.test, self.settings.k)


def write_results(judge: Judge, judged: dict | None, encoder, folder: Path) -> None:
    """Writes the judgement of the trained encoder as results.json, for `a2mim compare`; nothing where there is none.

    The protocols have names of their own, as the views are the recipe's and not those of `a2mim evaluate`.
    """
    if judged is None or judge.test is None:
        return
    sets = [[part.dataset.fingerprint, hash_of(part.indices.tolist())] for part in (judge.train, judge.test)]
    for _, key in probes(judged):
        probe = judged[key]
        constants = {"protocol": probe["protocol"], "pooling": judged["pooling"], "img_size": judge.img_size}
        constants |= {name: probe[name] for name in ("k", "temperature", "epochs", "seed") if name in probe}
        answers = torch.full((len(judge.test.indices),), -1, dtype=torch.int8)
        answers[judge.test.shown()] = probe["correct"].to(torch.int8)
        result = {
            "protocol": f"run-{key}",
            "protocol_hash": hash_of(constants),
            "constants": constants,
            "overridden": {},
            "encoder": str(folder),
            "encoder_hash": hash_encoder(encoder.model),
            "data": judge.train_set.title,
            "test_data": judge.test.dataset.title,
            "data_fingerprint": hash_of(sets),
            "test_fingerprint": hash_of(sets[1]),
            "top1_last": probe["top1"],
            "top1_best": None,
            "top5": probe["top5"],
            "interval": list(probe["interval"]),
            "n_test": probe["n_test"],
            "correct": answers,
        }
        write_result(result, folder)


def compare(before: dict | None, after: dict | None) -> dict | None:
    """For the summary: both results, plain, and what may honestly be said of the difference."""
    if before is None or after is None:
        return None
    gains = [difference(name, before[key]["correct"], after[key]["correct"]) for name, key in probes(before, after)]
    return {
        "before": _plain(before),
        "after": _plain(after),
        "verdicts": [one.sentence() for one in gains],
        "differences": [asdict(one) for one in gains],
    }


def _plain(results: dict) -> dict:
    return {
        key: _plain(value) if isinstance(value, dict) else value
        for key, value in results.items()
        if not isinstance(value, torch.Tensor)
    }

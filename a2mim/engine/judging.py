"""The encoder before and after pre-training, judged on labelled images in the same way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from a2mim.batchnorm import batchnorm_statistics, calibrate_batchnorm, load_statistics, unsynchronise
from a2mim.data import EvalLoader
from a2mim.data.crops import height_and_width
from a2mim.engine.pretrain_settings import PretrainSettings
from a2mim.engine.refine_settings import RefineSettings
from a2mim.engine.report import probes, say, sentence
from a2mim.evaluation import calibration, difference, judge, write_result
from a2mim.evaluation.colours import colour_knn
from a2mim.evaluation.identity import hash_encoder, hash_of
from a2mim.evaluation.judge import Extract
from a2mim.evaluation.parts import Part
from a2mim.pixels import Preprocessing
from a2mim.processes.leading import Share, spread


class Judge:
    """k-NN, linear and attentive probe of frozen features, at the recipe's image size or its `judge.img_size`.

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
        data, larger = settings.data, getattr(settings.judge, "img_size", None)  # refinement judges at its own size
        assert data.img_size is not None and data.mean is not None and data.std is not None  # the task filled them in
        self.img_size, self.seed = larger or data.img_size, settings.seed
        self.pixels = Preprocessing(data.mean, data.std, height_and_width(self.img_size))
        self.train_set = train_set
        self._calibrated: dict[int, tuple] = {}
        self.train = self.loader(train_set, self.settings.train_images)
        self.test = None if test_set is None else self.loader(test_set, self.settings.test_images)
        self.shown: list[Tensor] = []  # ids of the test images that were readable when last judged, in order
        self._helped: dict[str, tuple[nn.Module, Extract]] = {}

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

    def keep_calibrated(self, encoder) -> None:
        """Notes that an export has calibrated this encoder on `calibration_batches`, so that it is not done twice."""
        self._calibrated[id(encoder)] = encoder, copy.deepcopy(encoder).to(self.device)

    def __call__(self, encoder, when: str) -> dict | None:
        """Results of `a2mim.evaluation.judge`, or None where there is nothing to judge on."""
        if self.test is None:
            return None
        model = self.calibrated(encoder).model
        results = judge(
            model,
            self.train,
            self.test,
            k=self.settings.k,
            seed=self.seed,
            mean=self.pixels.mean,
            std=self.pixels.std,
            spread=lambda share, split: self._parts(share, split, when, batchnorm_statistics(model)),
        )
        say(f"{when:>6} {self.work}: {sentence(results)}")
        return results

    def _parts(self, share: Share, split: str, when: str, statistics: dict[str, Tensor]) -> Iterator[Part]:
        """The results of all batches of a split, from all processes."""
        self.shown = []
        for part in spread("judge", (when, split, statistics), share):
            if part.found:
                self.shown.append(part.ids)
            yield part

    def helpers(self, encoders: Mapping[str, Any]) -> dict[str, Callable[..., Share]]:
        """See `a2mim.processes.leading.lead`; encoders: "before" and "after" -> the encoder of this process."""
        return {"judge": partial(self._share, encoders)}

    def _share(self, encoders: Mapping[str, Any], when: str, split: str, statistics: dict[str, Tensor]) -> Share:
        """The share of a process that does not lead, with BatchNorm as the first process has calibrated it."""
        if when not in self._helped:
            model: Any = unsynchronise(copy.deepcopy(encoders[when])).to(self.device).model
            features = Extract(model, "default", self.pixels.mean, self.pixels.std, attentive=True)
            self._helped = {when: (model, features)}
        model, features = self._helped[when]
        load_statistics(model, statistics)
        loader = self.train if split == "train" else self.test
        assert loader is not None  # the first process judges on it
        return features.share(loader)

    def shown_positions(self) -> Tensor:
        """(M,) positions in the test loader's `indices`, which ascend, of the images that were judged last."""
        assert self.test is not None
        return torch.from_numpy(np.searchsorted(self.test.indices, torch.cat(self.shown).numpy()))

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
        answers[judge.shown_positions()] = probe["correct"].to(torch.int8)
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

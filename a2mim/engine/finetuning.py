"""Fine-tuning as a task of the engine: an encoder with a classifier, trained end to end on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook

import a2mim
from a2mim.batchnorm import unsynchronise
from a2mim.data import Access
from a2mim.data.crops import height_and_width
from a2mim.engine.activations import keep_activations
from a2mim.engine.classifier import Classifier, at_size, build_classified, rebuild_classified
from a2mim.engine.evaluating import EvaluationHook
from a2mim.engine.finetune_protocol import protocol_in_force
from a2mim.engine.finetune_result import hand_over_classifier, result_of
from a2mim.engine.finetune_settings import FinetuneData, FinetuneSettings
from a2mim.engine.head_start import start_at_probe
from a2mim.engine.labelled_data import PIXELS, LabelledData, open_labelled
from a2mim.engine.mixing import Mixing
from a2mim.engine.optim import build_layered_optimizer
from a2mim.engine.rate_trial import choose_rate
from a2mim.engine.records import Request, StepContext
from a2mim.engine.report import timm_lines
from a2mim.evaluation.results import write_result
from a2mim.evaluation.subsets import write_list
from a2mim.processes.leading import Share
from a2mim.text import size_in_words


class Finetuning:
    """See `a2mim.engine.task.Task`.

    A resumed run takes the architecture from its checkpoint and needs its source no more.
    """

    command = "finetune"
    settings_class = FinetuneSettings

    @staticmethod
    def open(
        settings: FinetuneSettings, request: Request, saved: dict | None = None, access: Access | None = None
    ) -> LabelledData:
        """See `open_labelled`."""
        return open_labelled(settings, request, saved, access)

    def __init__(self, data: LabelledData, request: Request, device: torch.device, saved: dict | None = None):
        self.request, self.settings = request, data.settings
        self.train_set, self.test_set, self.whole, self.rows = data.train_set, data.test_set, data.whole, data.rows
        self.num_classes = data.num_classes
        settings, images = data.settings, data.settings.data
        if data.source is None:
            assert saved is not None
            self.arguments, self.source_hash = saved["classifier"], saved["source_hash"]
            self.recognised: str | None = None
            model = rebuild_classified(self.arguments, settings.classifier.drop_path_rate)
        else:
            sizes = images.img_size, images.in_chans
            model, self.arguments, report = build_classified(data.source, data.num_classes, *sizes, settings.classifier)
            self.source_hash, self.recognised = report["hash"], report["recognised"]
        self.model = Classifier(model, settings.loss, images.mean, images.std)
        self.network = self.model.model
        at_size(self.network, images.test_size, images.in_chans)  # refuses before the first step, not after an epoch
        erasing, mix = settings.augment.erasing, settings.mix
        self.mixing = Mixing(self.num_classes, erasing, mix, settings.seed, device)
        evaluate = settings.evaluate
        view = central_view(images, images.test_size) | {"batch_size": evaluate.batch_size}
        self.judge = EvaluationHook(self.test_set, self.train_set, evaluate.every_epochs, view)
        self.start = dict(saved.get("start") or {}) if saved else self._begin(data, device)

    def _begin(self, data: LabelledData, device: torch.device) -> dict:
        """What the recipe has decided by the training images before the first step: the classifier's first weights
        ("probe"), and the learning rate ("rate"). All processes take those of the first.
        """
        settings, found = self.settings, {}
        view = central_view(settings.data, settings.data.img_size)
        if settings.classifier.start == "probe":
            found["probe"] = start_at_probe(self.model, self.train_set, view, device)
        if settings.optimizer.rates:
            found["rate"] = choose_rate(self.model, self.train_set, settings, data.augmentation, view, device)
        decided = [found]
        broadcast_object_list(decided)
        return decided[0]

    def optimizer(self) -> torch.optim.Optimizer:
        chosen = self.settings.optimizer
        if "rate" in self.start:
            chosen = chosen.model_copy(update={"base_lr": self.start["rate"]["base_lr"]})
        return build_layered_optimizer(self.network, chosen, self.settings.global_batch_size)

    def hooks(self) -> dict[str, Hook]:
        return {"judge": self.judge, "list": ListHook(self.whole, self.rows)}

    def micro_batches(self, context: StepContext, batch: dict, step: int, epoch: int) -> Iterator[dict]:
        """Erased and mixed images, and their targets."""
        parts = (batch[key].chunk(context.accumulate) for key in ("images", "labels", "ids"))
        for number, (images, labels, ids) in enumerate(zip(*parts, strict=True)):
            images = self.mixing.erase(self.model.normalize(context.to_device(images)), ids, epoch)
            seed = context.step_seed(step, f"mix {number}")
            images, targets = self.mixing.mix(images, labels.to(context.device, non_blocking=True), seed)
            yield {"images": images, "targets": targets}

    def measure(self, context: StepContext, batch: dict, step: int) -> dict[str, torch.Tensor]:
        return {}

    def derive(self, values: dict[str, float]) -> dict[str, float]:
        return {}

    def caption(self, line: dict) -> str:
        return f"test {self.judge.last['test_top1']:.1f} %" if self.judge.last else ""

    def meta(self) -> dict:
        """What rebuilds the classifier."""
        pixels = self.settings.data.model_dump(include=PIXELS)
        return {
            "classifier": self.arguments,
            "class_names": self.whole.class_names,
            "source_hash": self.source_hash,
            "pixels": pixels,
            "start": self.start,
            "version": a2mim.__version__,
        }

    def opening(self) -> list[str]:
        total = sum(p.numel() for p in self.network.parameters())
        size = size_in_words(self.arguments["img_size"])
        made = f"{self.arguments['name']} at {size} px, {total / 1e6:.2f} M parameters"
        named = self.request.source
        source = f"{named} ({self.recognised})" if self.recognised else named
        protocol = protocol_in_force(self.settings)
        lines = [
            f"  source   {source}",
            f"  encoder  {made}, {self.arguments['pooling']} -> {self.num_classes} classes",
            f"  test     {self.judge.dataset.describe()}",
        ]
        if protocol is not None:
            changed = (
                f", with {len(protocol.overridden)} constants changed" if protocol.overridden else ", as published"
            )
            lines.append(f"  protocol {protocol.name}{changed}")
        if "probe" in self.start:
            probe = self.start["probe"]
            images, right = f"{probe['images']:,}", _held(probe)
            lines.append(
                f"  start    the classifier is a probe of the frozen features of {images} training images{right}"
            )
        if "rate" in self.start:
            lines.append(f"  rate     {_rates(self.start['rate'])}")
        if self.arguments["frozen"]:
            lines.append(f"  frozen   {len(self.arguments['frozen'])} tensors that this pooling does not read")
        return lines

    def facts(self, last: dict) -> dict:
        return {
            "start": self.start,
            "classifier": self.arguments,
            "source_hash": self.source_hash,
            "test": self.judge.dataset.describe(),
        }

    def helpers(self, averaged: Any) -> dict[str, Callable[..., Share]]:
        """None: the classifier was judged by all processes already."""
        return {}

    def hand_over(self, averaged: Any, folder: Path) -> dict:
        """The result as files, the classifier and the encoder as timm folders."""
        keep_activations(averaged.model)
        result = result_of(self)
        write_result(result, folder)
        handed = {"export": None, "classifier_folder": None}
        if self.settings.export:
            handed = hand_over_classifier(self, unsynchronise(averaged.model), folder)
        kept = ("protocol", "protocol_hash", "overridden", "top1_last", "top1_best", "top5_last", "interval", "n_test")
        return {"result": {key: result[key] for key in kept} | {"best_epoch": result["best_epoch"]}, **handed}

    def closing(self, summary: dict, folder: Path) -> list[str]:
        result, loss = summary["result"], summary["loss"]
        low, high = result["interval"]
        lines = [] if loss["first"] is None else [f"  loss     {loss['first']:.4f} -> {loss['last']:.4f}"]
        lines += [
            f"  test     top-1 {result['top1_last']:.2f} % after the last epoch, 95 % interval {low:.1f}–{high:.1f},"
            f" of {result['n_test']} images; top-5 {result['top5_last']:.2f} %",
            f"  best     {result['top1_best']:.2f} % after epoch {result['best_epoch']:g}: chosen on the test images,"
            " so it flatters",
            f"  results  {folder / 'results.json'}, {folder / 'results.csv'}",
        ]
        if summary["classifier_folder"]:
            lines += [
                f"  encoder  {folder / 'encoder'}",
                "next:",
                *timm_lines(Path(summary["classifier_folder"])),
            ]
        return lines


def central_view(images: FinetuneData, size: int | tuple[int, int] | None) -> dict:
    """img_size, resize and interpolation of central crops of one of the recipe's sizes."""
    assert size is not None  # `complete_pixels` filled it in
    sides = height_and_width(size)
    return {"img_size": sides, "resize": round(max(sides) / images.crop_pct), "interpolation": images.interpolation}


def _held(probe: dict) -> str:
    top1 = probe["held_out_top1"]
    return "" if top1 is None else f", right on {top1:.1f} % of the held-out ones"


def _rates(rate: dict) -> str:
    """Which rate was chosen, and by what."""
    if not rate["tried"]:
        return f"{rate['base_lr']:g}: no class has two images, so no rate could be tried on held-out ones"
    tried = ", ".join(f"{value:g}: {top1:.1f} %" for value, (top1, _) in rate["tried"].items())
    return (
        f"{rate['base_lr']:g} of {tried} on {rate['held_out']:,} held-out training images, {rate['steps']:,} steps each"
    )


class ListHook(Hook):
    """Writes which images were trained on, where not all of them were.

    Args:
        dataset: all of them.
        rows: those that were chosen.
    """

    priority = "VERY_HIGH"

    def __init__(self, dataset, rows: np.ndarray):
        self.dataset, self.rows = dataset, rows

    def before_train(self, runner) -> None:
        if len(self.rows) < len(self.dataset) and runner.rank == 0:
            write_list(self.dataset, self.rows, runner.run.folder / "train_images.tsv")

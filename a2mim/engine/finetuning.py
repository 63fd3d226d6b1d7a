"""Fine-tuning as a task of the engine: an encoder with a classifier, trained end to end on labelled images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from mmengine.hooks import Hook
from torch import nn

import a2mim
from a2mim.batchnorm import unsynchronise
from a2mim.data.augment import Augment
from a2mim.engine.assembly import open_sets
from a2mim.engine.classifier import Classifier, at_size, build_classified, rebuild_classified
from a2mim.engine.config import changed
from a2mim.engine.evaluating import EvaluationHook
from a2mim.engine.finetune_protocol import protocol_in_force
from a2mim.engine.finetune_result import hand_over_classifier, result_of
from a2mim.engine.finetune_settings import FinetuneSettings, Labels
from a2mim.engine.mixing import Mixing
from a2mim.engine.optim import build_layered_optimizer
from a2mim.engine.records import Request, StepContext
from a2mim.engine.report import timm_lines
from a2mim.evaluation.results import write_result
from a2mim.evaluation.subsets import draw_subset, subset_of, write_list
from a2mim.pixels import Preprocessing
from a2mim.weights.loading import read_source

PIXELS = {"mean", "std", "interpolation", "img_size", "in_chans"}  # settings that a checkpoint carries


class Finetuning:
    """See `a2mim.engine.task.Task`.

    A resumed run takes the architecture from its checkpoint and needs its source no more.
    """

    command = "finetune"
    settings_class = FinetuneSettings

    def __init__(
        self, settings: FinetuneSettings, request: Request, device: torch.device, saved: dict | None = None, access=None
    ):
        self.request, self.device, self.saved = request, device, saved
        self.found = None if saved else read_architecture(request.source)
        self.settings = settings = complete_pixels(
            settings, Preprocessing.of(saved["pixels"]) if saved else pixels_of(self.found)
        )
        whole, self.test_set = open_sets(request.data, request.test_data, settings.data, access)
        self.rows = choose_rows(whole, settings.labels, self.test_set)
        self.train_set = whole if len(self.rows) == len(whole) else subset_of(whole, self.rows)
        self.whole = whole
        self.num_classes = count_classes(whole)
        if saved:
            check_classes(whole, self.num_classes, saved)
            self.num_classes = saved["classifier"]["num_classes"]
        check_mixable(settings)
        channels, bits, augment = whole.pixel_format.in_chans, whole.pixel_format.bits, settings.augment
        if (augment.auto_augment or augment.color_jitter) and (channels, bits) != (3, 8):
            raise ValueError(
                f"these images have {channels} channels of {bits} bits, and augment.auto_augment and"
                " augment.color_jitter are for 3 of 8; set them to '' and 0"
            )

    def build(self) -> None:
        settings, data = self.settings, self.settings.data
        if self.saved:
            self.arguments, self.source_hash = self.saved["classifier"], self.saved["source_hash"]
            model = rebuild_classified(self.arguments, settings.classifier.drop_path_rate)
        else:
            sizes = data.img_size, data.in_chans
            chosen = settings.classifier
            model, self.arguments, self.report = build_classified(self.found, self.num_classes, *sizes, chosen)
            self.source_hash = self.report["hash"]
        self.found = None
        self.model = Classifier(model, settings.loss, data.mean, data.std)
        self.network = self.model.model
        at_size(self.network, data.test_size, data.in_chans)  # refuses before the first step, not after an epoch
        erasing, mix = settings.augment.erasing, settings.mix
        self.mixing = Mixing(self.num_classes, erasing, mix, settings.seed, self.device)

    def augmentation(self) -> dict:
        augment, data = self.settings.augment, self.settings.data
        if not augment.auto_augment and not augment.color_jitter:
            return {"repeats": augment.repeats}
        looks = data.img_size, data.mean, data.interpolation
        return {
            "repeats": augment.repeats,
            "augment": Augment(augment.auto_augment, augment.color_jitter, *looks),
        }

    def optimizer(self) -> torch.optim.Optimizer:
        return build_layered_optimizer(self.network, self.settings.optimizer, self.settings.global_batch_size)

    def hooks(self) -> dict[str, Hook]:
        data, evaluate = self.settings.data, self.settings.evaluate
        size = data.test_size
        view = {"img_size": size, "resize": round(size / data.crop_pct), "interpolation": data.interpolation}
        self.judge = EvaluationHook(
            self.test_set, self.train_set, evaluate.every_epochs, view | {"batch_size": evaluate.batch_size}
        )
        return {"judge": self.judge, "list": ListHook(self.whole, self.rows)}

    def micro_batches(self, context: StepContext, batch: dict, step: int, epoch: int) -> Iterator[dict]:
        """Erased and mixed images, and their targets."""
        parts = (batch[key].chunk(context.accumulate) for key in ("images", "labels", "ids"))
        for number, (images, labels, ids) in enumerate(zip(*parts, strict=True)):
            images = self.mixing.erase(self.model.normalize(context.to_device(images)), ids, epoch)
            seed = context.step_seed(step, f"mix {number}")
            images, targets = self.mixing.mix(images, labels.to(context.device), seed)
            yield {"images": images, "targets": targets}

    def measure(self, context: StepContext, batch: dict, step: int) -> dict[str, float]:
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
            "version": a2mim.__version__,
        }

    def opening(self) -> list[str]:
        total = sum(p.numel() for p in self.network.parameters())
        made = f"{self.arguments['name']} at {self.settings.data.img_size} px, {total / 1e6:.2f} M parameters"
        named = self.request.source
        source = named if self.saved else f"{named} ({self.report['recognised']})"
        protocol = protocol_in_force(self.settings)
        lines = [
            f"  source   {source}",
            f"  encoder  {made}, {self.arguments['pooling']} -> {self.num_classes} classes",
            f"  test     {self.test_set.describe()}",
        ]
        if protocol is not None:
            changed = (
                f", with {len(protocol.overridden)} constants changed" if protocol.overridden else ", as published"
            )
            lines.append(f"  protocol {protocol.name}{changed}")
        if self.arguments["frozen"]:
            lines.append(f"  frozen   {len(self.arguments['frozen'])} tensors that this pooling does not read")
        return lines

    def facts(self, last: dict) -> dict:
        return {"classifier": self.arguments, "source_hash": self.source_hash, "test": self.test_set.describe()}

    def hand_over(self, averaged: nn.Module, folder: Path) -> dict:
        """The result as files, the classifier and the encoder as timm folders."""
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


def read_architecture(source):
    """The source, read; ValueError where there is none, or none that timm can put a classifier on."""
    if source is None:
        raise ValueError(
            "fine-tuning needs a SOURCE: a run folder, an exported folder, a checkpoint, NAME:FILE, or a timm name"
            " (which starts from random weights)"
        )
    found = read_source(source)
    if not timm.is_model(found.name):
        raise ValueError(
            f"{source} is a network of your own, {found.name}: fine-tuning puts timm's classifiers on timm's networks;"
            " register it with timm.models.register_model, or export it and train it elsewhere"
        )
    return found


def pixels_of(found) -> Preprocessing:
    """The preprocessing of a source; timm's description of the architecture where the source states none."""
    known = found.preprocessing
    if known is None:
        cfg = timm.get_pretrained_cfg(found.name)
        stated = {"mean": cfg.mean, "std": cfg.std} if cfg else {}
        known = Preprocessing.of(stated, cfg.input_size[1:] if cfg else 224)
    return known.for_channels(found.model_args.get("in_chans", known.channels))


def complete_pixels(settings: FinetuneSettings, source: Preprocessing) -> FinetuneSettings:
    """The settings with what the recipe's `data` leaves to the source filled in."""
    data = settings.data
    found = {"img_size": data.img_size, "in_chans": data.in_chans or source.channels}
    if data.img_size is None:
        height, width = source.img_size
        if height != width:
            raise ValueError(f"the source takes images of {height} x {width} px; set data.img_size to one number")
        found["img_size"] = height
    found["test_size"] = data.test_size or found["img_size"]
    for key, own in (("mean", data.mean or source.mean), ("std", data.std or source.std)):
        values = tuple(own)
        same = len(values) == found["in_chans"]
        found[key] = values if same else (sum(values) / len(values),) * found["in_chans"]
    return changed(settings, {f"data.{key}": value for key, value in found.items()})


def choose_rows(dataset, labels: Labels, test_set) -> np.ndarray:
    """The rows to train on: those with a label, or a class-balanced part of them."""
    if test_set is None:
        raise ValueError(
            f"fine-tuning needs labels, and labelled test images: give --test-data, or --data with a test/ beside"
            f" train/ ({dataset.describe()})"
        )
    rows = np.flatnonzero(dataset.labels >= 0)
    if dataset.stream and (labels.subset is not None or len(rows) < len(dataset)):
        raise ValueError(
            f"{dataset.describe()}: a pipeline is trained on whole, and every item needs a label; filter it in the"
            " pipeline itself and leave labels.subset out"
        )
    if len(np.unique(dataset.labels[rows])) < 2:
        raise ValueError(f"{dataset.describe()}: there is nothing to tell apart; give images of at least two classes")
    if labels.subset is not None:
        rows = rows[draw_subset(dataset.labels[rows], labels.subset, labels.seed)]
    return rows


def count_classes(train) -> int:
    """A test class that training lacks has no output: its images are counted and never right."""
    return max(len(train.class_names or ()), int(train.labels.max()) + 1)


def check_classes(dataset, num_classes: int, saved: dict) -> None:
    """A classifier goes on with the classes that it has: output 3 must mean what it meant."""
    before, outputs = saved["class_names"], saved["classifier"]["num_classes"]
    if num_classes > outputs or (before and dataset.class_names and list(before) != list(dataset.class_names)):
        raise ValueError(
            f"the data cannot be resumed: the classifier has {outputs} classes{_named(before)} and the data have"
            f" {num_classes}{_named(dataset.class_names)}; resume with the classes that there were, or start anew"
        )


def _named(classes) -> str:
    return f" ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''})" if classes else ""


def check_mixable(settings: FinetuneSettings) -> None:
    """Mixup mixes each image of a micro-batch with another."""
    count = int(os.environ.get("WORLD_SIZE", 1)) * settings.accumulate
    images, rest = divmod(settings.global_batch_size, count)
    if (settings.mix.mixup or settings.mix.cutmix) and images % 2 and not rest:
        raise ValueError(
            f"mixup and cutmix need an even number of images in a micro-batch, not {images} (global_batch_size="
            f"{settings.global_batch_size} in {count}); choose {(images + 1) * count}"
        )

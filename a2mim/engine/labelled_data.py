"""What fine-tuning opens before it builds a model: labelled images, the source's architecture, completed settings."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import timm

from a2mim.data import Access, ImageDataset
from a2mim.data.augment import Augment
from a2mim.engine.assembly import open_sets
from a2mim.engine.config import changed
from a2mim.engine.finetune_settings import FinetuneData, FinetuneSettings, Labels
from a2mim.engine.records import Request, TaskData
from a2mim.engine.refine_settings import RefineSettings
from a2mim.evaluation.subsets import draw_subset, subset_of
from a2mim.pixels import Preprocessing
from a2mim.weights.loading import Source, read_source

PIXELS = {"mean", "std", "interpolation", "img_size", "in_chans"}  # settings that a checkpoint carries
Kind = TypeVar("Kind", FinetuneSettings, RefineSettings)


@dataclass(frozen=True)
class LabelledData(TaskData):
    """See `TaskData`.

    Args:
        whole: all training images, of which `rows` are trained on.
        rows: (N,) ascending.
        num_classes: outputs of the classifier.
        source: the encoder's architecture and weights; None for a run that goes on from a checkpoint.
    """

    whole: ImageDataset = field(kw_only=True)
    rows: np.ndarray = field(kw_only=True)
    num_classes: int = field(kw_only=True)
    source: Source | None = field(kw_only=True)


def open_labelled(
    settings: FinetuneSettings, request: Request, saved: dict | None = None, access: Access | None = None
) -> LabelledData:
    """Opens data and source; nothing is written.

    Args:
        saved: the `meta` of the checkpoint that the run goes on from, or None.
        access: how data are reached.

    Raises:
        ValueError, FileNotFoundError: the data have no labels, other classes than the checkpoint, or do not fit the
            recipe; there is no source.
    """
    if saved:
        source, pixels = None, Preprocessing.of(saved["pixels"])
    else:
        source = read_architecture(request.source)
        pixels = pixels_of(source)
    settings = complete_pixels(settings, pixels)
    whole, test_set = open_sets(request.data, request.test_data, settings.data, access or Access())
    rows = choose_rows(whole, settings.labels, test_set)
    settings = raise_epochs(settings, len(rows))
    num_classes = count_classes(whole)
    if saved:
        check_classes(whole, num_classes, saved)
        num_classes = saved["classifier"]["num_classes"]
    check_mixable(settings)
    check_start(settings, whole)
    check_augmentable(settings, whole)
    return LabelledData(
        settings,
        whole if len(rows) == len(whole) else subset_of(whole, rows),
        test_set,
        augmentation_of(settings),
        whole=whole,
        rows=rows,
        num_classes=num_classes,
        source=source,
    )


def raise_epochs(settings: FinetuneSettings, images: int) -> FinetuneSettings:
    """The settings with as many epochs as `schedule.least_steps` asks for with so many images."""
    schedule, steps = settings.schedule, max(1, images // settings.global_batch_size)
    if schedule.least_steps is None or schedule.epochs * steps >= schedule.least_steps:
        return settings
    return changed(settings, {"schedule.epochs": math.ceil(schedule.least_steps / steps)})


def augmentation_of(settings: FinetuneSettings) -> dict:
    """What TrainLoader takes beyond the crop."""
    augment, data = settings.augment, settings.data
    if not augment.auto_augment and not augment.color_jitter:
        return {"repeats": augment.repeats}
    assert data.img_size is not None  # `complete_pixels` filled it in
    looks = data.img_size, data.mean, data.interpolation
    return {"repeats": augment.repeats, "augment": Augment(augment.auto_augment, augment.color_jitter, *looks)}


def check_augmentable(settings: FinetuneSettings, dataset: ImageDataset) -> None:
    """ValueError where images do not have the channels and bits that the augmentation is made for."""
    channels, bits, augment = dataset.pixel_format.in_chans, dataset.pixel_format.bits, settings.augment
    if (augment.auto_augment or augment.color_jitter) and (channels, bits) != (3, 8):
        raise ValueError(
            f"these images have {channels} channels of {bits} bits, and augment.auto_augment and"
            " augment.color_jitter are for 3 of 8; set them to '' and 0"
        )


def read_architecture(source: str | None) -> Source:
    """The source, read; ValueError where there is none, or none that timm can put a classifier on."""
    if source is None:
        raise ValueError(
            "fine-tuning needs a SOURCE: a run folder, an exported folder, a checkpoint, NAME:FILE, or a timm name"
            " (which starts from random weights)"
        )
    read = read_source(source)
    if not timm.is_model(read.name):
        raise ValueError(
            f"{source} is a network of your own, {read.name}: fine-tuning puts timm's classifiers on timm's networks;"
            " register it with timm.models.register_model, or export it and train it elsewhere"
        )
    return read


def pixels_of(source: Source) -> Preprocessing:
    """The preprocessing of a source; timm's description of the architecture where the source states none."""
    known = source.preprocessing
    if known is None:
        cfg = timm.get_pretrained_cfg(source.name)
        stated = {"mean": cfg.mean, "std": cfg.std} if cfg else {}
        known = Preprocessing.of(stated, cfg.input_size[1:] if cfg else 224)
    return known.for_channels(source.model_args.get("in_chans", known.channels))


def complete_pixels(settings: Kind, source: Preprocessing) -> Kind:
    """The settings, of fine-tuning or of refinement, with what the recipe's `data` leaves to the source filled in."""
    data = settings.data
    complete: dict[str, Any] = {"img_size": data.img_size, "in_chans": data.in_chans or source.channels}
    if data.img_size is None:
        complete["img_size"] = source.img_size
    if isinstance(data, FinetuneData):
        complete["test_size"] = data.test_size or complete["img_size"]
    for key, own in (("mean", data.mean or source.mean), ("std", data.std or source.std)):
        values = tuple(own)
        same = len(values) == complete["in_chans"]
        complete[key] = values if same else (sum(values) / len(values),) * complete["in_chans"]
    return changed(settings, {f"data.{key}": value for key, value in complete.items()})


def choose_rows(dataset: ImageDataset, labels: Labels, test_set: ImageDataset | None) -> np.ndarray:
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


def count_classes(train: ImageDataset) -> int:
    """A test class that training lacks has no output: its images are counted and never right."""
    return max(len(train.class_names or ()), int(train.labels.max()) + 1)


def check_classes(dataset: ImageDataset, num_classes: int, saved: dict) -> None:
    """A classifier goes on with the classes that it has: output 3 must mean what it meant."""
    before, outputs = saved["class_names"], saved["classifier"]["num_classes"]
    if num_classes > outputs or (before and dataset.class_names and list(before) != list(dataset.class_names)):
        raise ValueError(
            f"the data cannot be resumed: the classifier has {outputs} classes{_named(before)} and the data have"
            f" {num_classes}{_named(dataset.class_names)}; resume with the classes that there were, or start anew"
        )


def _named(classes) -> str:
    return f" ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''})" if classes else ""


def check_start(settings: FinetuneSettings, dataset: ImageDataset) -> None:
    """ValueError where images that cannot be shown twice are to decide something before the first step."""
    asked = [
        *(["classifier.start='probe'"] if settings.classifier.start == "probe" else []),
        *(["optimizer.rates"] if settings.optimizer.rates else []),
    ]
    if dataset.stream and asked:
        raise ValueError(
            f"{dataset.describe()}: {' and '.join(asked)} read the training images before the first step, and a"
            " pipeline has no images by number; set classifier.start='random' and optimizer.rates=[]"
        )


def check_mixable(settings: FinetuneSettings) -> None:
    """Mixup mixes each image of a micro-batch with another."""
    count = int(os.environ.get("WORLD_SIZE", 1)) * settings.micro_batches
    images, rest = divmod(settings.global_batch_size, count)
    if (settings.mix.mixup or settings.mix.cutmix) and images % 2 and not rest:
        raise ValueError(
            f"mixup and cutmix need an even number of images in a micro-batch, not {images} (global_batch_size="
            f"{settings.global_batch_size} in {count}); choose {(images + 1) * count}"
        )

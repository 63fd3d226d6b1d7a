"""What an analysis looks at: the trained network and the untrained one beside it, the images, and a classifier each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from a2mim.batchnorm import calibrate_batchnorm, has_batchnorm
from a2mim.data import EvalLoader, ImageDataset, Reading, match_labels, open_dataset
from a2mim.devices import choose_device
from a2mim.evaluation.calibration import calibration_batches, calibration_loader, calibration_rows
from a2mim.evaluation.features import frozen, pooling_of
from a2mim.evaluation.identity import hash_encoder, hash_of
from a2mim.evaluation.linear import hold_out
from a2mim.evaluation.logreg import fit_logreg
from a2mim.evaluation.subsets import subset_of
from a2mim.files import read_object
from a2mim.weights.loading import build_reported, read_source
from a2mim.wiring.plain_arguments import shorten
from a2mim.wiring.timm_models import build_timm

TRAINED, UNTRAINED = "trained", "untrained"
SPLIT_OFF = 0.2  # of each class, where the data have no test part
FIT_IMAGES, C_VALUES = 2000, 12  # of the linear classifier: training images at most, strengths of the penalty
_MOST_CLASSES = 1_000_000
_RESIZE = 256 / 224  # of the short side, relative to the crop


@dataclass(frozen=True)
class Network:
    """One of the two networks.

    Args:
        label: "trained" or "untrained".
        model: in evaluation mode, on the device, without a classifier.
        hash: of its weights.
    """

    label: str
    model: nn.Module
    hash: str

    def pooled(self, images: Tensor) -> Tensor:
        """Normalised (B, C, H, W) -> (B, D): what timm hands to a classifier."""
        with frozen(self.model):
            return pooling_of(self.model, "default")(images).float()


@dataclass(frozen=True)
class Judged:
    """A classifier of normalised images.

    Args:
        score: (B, C, H, W) -> (B, K).
        says: what it is, in words.
        classes: (K,) the labels that its outputs stand for, ascending.
    """

    score: Callable[[Tensor], Tensor]
    says: str
    classes: Tensor


class Subjects:
    """The two networks of an encoder and the images to look at, read as the encoder was trained on them.

    Args:
        source: what `load_encoder` takes: a run, an exported folder, NAME:FILE, …
        data: images; with a test part, or with `test_data`, that part is looked at; else a fifth of each class is.
        seed: of the untrained network's weights and of every choice of images.

    Raises:
        ValueError, FileNotFoundError: no such encoder, or no images.
    """

    def __init__(
        self,
        source: str,
        data,
        test_data=None,
        img_size: int | tuple[int, int] | None = None,
        seed: int = 0,
        device: str | None = None,
        access=None,
        reading: Reading | None = None,
    ):
        self.device, self.seed, self.source = choose_device(device), seed, str(source)
        found = read_source(source)
        sizes: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, self.pixels, _ = build_reported(found, **sizes)
            bare = replace(found, tensors=None, path=None)
            untrained = build_reported(bare, **sizes)[0]
        form = {"in_chans": self.pixels.channels, "access": access, **(reading or Reading()).arguments()}
        self.train, self.test = _split(open_dataset(data, "train", **form), data, test_data, form)
        self.networks = [
            self._ready(TRAINED, model, calibrated=found.calibrated),
            self._ready(UNTRAINED, untrained, calibrated=False),
        ]
        self._classifiers: dict[str, Judged] = {}

    def _ready(self, label: str, model: nn.Module, calibrated: bool) -> Network:
        """On the device; BatchNorm's statistics are taken from training images, unless they are of whole images."""
        model.to(self.device).eval()
        if not calibrated and has_batchnorm(model):
            size = self.pixels.img_size
            loader = calibration_loader(self.train, size, round(max(size) * _RESIZE), "bicubic")
            calibrate_batchnorm(model, calibration_batches(loader, self.normalize))
        return Network(label, model, hash_encoder(model))

    def normalize(self, images: Tensor) -> Tensor:
        """What a loader gives -> float on the device."""
        return self.pixels.normalize(images.to(self.device))

    @property
    def labelled(self) -> bool:
        """Whether both parts have labels, so that a classifier can be fitted and asked."""
        return bool((self.train.labels >= 0).any() and (self.test.labels >= 0).any())

    @property
    def identity(self) -> list:
        """What every number depends on: networks, images, seed."""
        parts = [self.train.fingerprint, self.test.fingerprint, self.seed, list(self.pixels.img_size)]
        return [*(network.hash for network in self.networks), *parts]

    def rows(self, dataset: ImageDataset, number: int, labelled: bool = False) -> np.ndarray:
        """At most so many rows, as many of every class."""
        among = np.flatnonzero(dataset.labels >= 0) if labelled else None
        return calibration_rows(dataset, number, self.seed, among)

    def batches(self, dataset: ImageDataset, rows: np.ndarray, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """(normalised images on the device, labels) of the readable ones among some rows."""
        side = self.pixels.img_size
        for batch in EvalLoader(dataset, side, round(max(side) * _RESIZE), batch_size=size, indices=rows):
            yield self.normalize(batch["images"]), torch.as_tensor(batch["labels"])

    def classifier(self, network: Network) -> Judged:
        """The fine-tuned run's own for the trained network, where there is one; else a linear one, fitted now."""
        if network.label not in self._classifiers:
            own = self._own_classifier() if network.label == TRAINED else None
            self._classifiers[network.label] = own or self._fit(network)
        return self._classifiers[network.label]

    def _own_classifier(self) -> Judged | None:
        folder = Path(self.source) / "classifier"
        if not (folder / "model.safetensors").is_file():
            return None
        outputs = read_object(folder / "config.json").get("num_classes")
        if type(outputs) is not int or not 0 < outputs <= _MOST_CLASSES:
            raise ValueError(f"{folder / 'config.json'} has num_classes={shorten(outputs)}, not a number of classes")
        model = build_timm(f"local-dir:{folder}", num_classes=outputs, pretrained=True).model.to(self.device).eval()
        names, known = getattr(model, "pretrained_cfg", {}).get("label_names"), self.train.class_names
        if names and known and list(names) != list(known):
            raise ValueError(
                f"the classifier in {folder} knows the classes {', '.join(map(str, names[:5]))}, … and the data have"
                f" {', '.join(map(str, known[:5]))}, …; give the data that it was fine-tuned on"
            )

        def score(images: Tensor) -> Tensor:
            with torch.no_grad():
                return model(images).float()

        return Judged(score, f"the fine-tuned classifier in {folder}", torch.arange(outputs))

    def _fit(self, network: Network) -> Judged:
        if not self.labelled:
            raise ValueError(
                f"{self.train.describe()}: interactions and occlusion need a classifier, and so labels; give labelled"
                " --data, or leave them out of --what"
            )
        rows = self.rows(self.train, FIT_IMAGES, labelled=True)
        found = [(network.pooled(images).cpu(), labels) for images, labels in self.batches(self.train, rows)]
        features, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        if len(torch.unique(labels)) < 2:
            raise ValueError(f"{self.train.describe()}: there is one class; a classifier needs two to tell apart")
        mean, scale = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
        fitted = fit_logreg((features - mean) / scale, labels, c_values=C_VALUES, seed=self.seed)
        mean, scale = mean.to(self.device), scale.to(self.device)

        def score(images: Tensor) -> Tensor:
            return fitted.logits((network.pooled(images) - mean) / scale)

        says = f"a linear classifier, fitted on frozen features of {len(labels):,} training images"
        return Judged(score, says, fitted.classes)


def _split(train: ImageDataset, data, test_data, form: dict) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part; a fifth of each class, or of all images, is split off where none is given."""
    if test_data is not None or "test" in train.splits:
        test = open_dataset(data if test_data is None else test_data, "test", **form)
        labelled = (train.labels >= 0).any() and (test.labels >= 0).any()
        return train, match_labels(train, test) if labelled else test
    labels = torch.from_numpy(np.asarray(train.labels))
    rows = hold_out(labels.clamp(min=0), SPLIT_OFF, 0).numpy()
    if not len(rows):
        return train, train
    return subset_of(train, np.setdiff1d(np.arange(len(train)), rows)), subset_of(train, rows)


def key_of(subjects: Subjects, **constants) -> str:
    """A hash of everything that an analysis's numbers depend on."""
    return hash_of([subjects.identity, constants])

"""An encoder and two labelled sets: their views, their cached features, and the facts about them in a result."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable

import numpy as np
import timm
import torch
from torch import Tensor

from a2mim.batchnorm import batchnorm_statistics, calibrate_batchnorm, has_batchnorm, load_statistics
from a2mim.data import Access, EvalLoader, ImageDataset, Reading, TrainLoader, match_labels, open_dataset
from a2mim.evaluation.cache import Cache
from a2mim.evaluation.cache_entry import Entry, extracting
from a2mim.evaluation.calibration import DESCRIPTION, calibration_batches, calibration_loader
from a2mim.evaluation.encoder import Encoder
from a2mim.evaluation.feature_set import FeatureSet
from a2mim.evaluation.features import pooling_name, refuse_below_one
from a2mim.evaluation.identity import hash_of, stamp_of
from a2mim.evaluation.linear import hold_out
from a2mim.evaluation.overlap import find_contradictions, find_overlap, overlap_sentence
from a2mim.evaluation.parts import share_of
from a2mim.evaluation.passes import CentralViews, RandomViews, TrainingPass, crop_batches
from a2mim.evaluation.probe import Labelled
from a2mim.evaluation.subsets import subset_of
from a2mim.processes.leading import Share, spread
from a2mim.protocols.intervals import bootstrap_interval
from a2mim.text import warn_user

RESIZE = 256 / 224  # short side before the crop, in crops: Resize(256), CenterCrop(224)
SPLIT_OFF = 0.2  # of each class, to test on where there is no test set
VIEW = ("resize", "interpolation")  # constants that decide a test view
PROBED = 8  # images of noise that tell sizes and time
IMBALANCE = 10  # ratio of the commonest to the rarest class from which a warning is given
LOADED_AT_ONCE = 256  # random crops; larger batches are put together from features


class EvalContext:
    """An encoder and two labelled sets, with DINO's views of their images.

    Args:
        source, device, img_size, allow_partial: see `Encoder`.
        data, test_data: labelled sets, see `open_dataset`. Without test_data the test part of `data` is taken; where it
            has none, a fifth of each class is split off: `split_rows` of `whole`.
        batch_size: images a forward pass.
        num_workers: data processes.
        calibrate: take BatchNorm's statistics anew from training images first. None does so unless an exported folder
            brings statistics of whole images: a checkpoint has those of masked ones, a random network has none.
        cache: where features are kept; None keeps them for this process only.
        seed: of the weights, where the source is only a name.
        allow_contradictions: go on, with a warning, where identical images have different labels in the two sets.
        access, reading: how data are reached and pixels read, see a2mim/data/access.py and reading.py.

    Test labels are numbered by the training set's class names, see `match_labels`.
    """

    def __init__(
        self,
        source,
        data,
        test_data,
        device=None,
        img_size=None,
        batch_size=64,
        num_workers=0,
        calibrate=None,
        cache: Cache | None = None,
        allow_partial: bool = False,
        seed: int = 0,
        access: Access | None = None,
        reading: Reading | None = None,
        allow_contradictions: bool = False,
    ):
        refuse_below_one(batch_size=batch_size, img_size=img_size)
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be at least 0")
        self.encoder = Encoder(source, device, img_size, allow_partial, seed)
        self.model, self.device, self.img_size = self.encoder.model, self.encoder.device, self.encoder.img_size
        self.batch_size, self.num_workers = batch_size, num_workers
        self.cache = Cache(root=None) if cache is None else cache
        form = {"in_chans": self.encoder.channels, "access": access, **(reading or Reading()).arguments()}
        self.train = labelled(open_dataset(data, "train", **form), data)
        self.whole, self.split_rows = self.train, None
        if test_data is None and "test" not in self.train.splits:
            self.split_rows = hold_out(torch.from_numpy(np.asarray(self.train.labels)), SPLIT_OFF, 0).numpy()
            if not len(self.split_rows):
                raise ValueError(f"no class of {self.train.title} has two images: give --test-data to test on.")
            kept = np.setdiff1d(np.arange(len(self.train)), self.split_rows)
            self.train, test = (subset_of(self.whole, rows) for rows in (kept, self.split_rows))
        else:
            source = data if test_data is None else test_data
            test = labelled(open_dataset(source, "test", **form), source)
        self.test = match_labels(self.train, test)
        self.allow_contradictions = allow_contradictions
        self.calibrate = not self.encoder.clean_statistics if calibrate is None else calibrate
        self._entries: dict[tuple, Entry] = {}
        self._views: dict[str, RandomViews] = {}
        self._calibrated_on: int | None = None

    def take_statistics(self) -> int:
        """Calibrates BatchNorm, the first time; returns the number of images that its statistics are of.

        Not done when the context is created: the cost of an evaluation must be known before the first image is read.
        """
        if self._calibrated_on is None:
            self._calibrated_on = 0
            if self.calibrate:
                loader = calibration_loader(self.train, self.img_size, self.resize(), "bicubic", self.num_workers)
                batches = calibration_batches(loader, self.encoder.normalized)
                self._calibrated_on = calibrate_batchnorm(self.model, batches)
        return self._calibrated_on

    def resize(self, ratio: float = RESIZE) -> int:
        """Short side in pixels."""
        return round(max(self.img_size) * ratio)

    def view(self, dataset: ImageDataset, indices=None, resize=RESIZE, interpolation="bicubic") -> EvalLoader:
        """Resize, central crop."""
        short_side = self.resize(resize)
        return EvalLoader(
            dataset, self.img_size, short_side, interpolation, self.batch_size, self.num_workers, indices=indices
        )

    def crops(self, dataset: ImageDataset, batch_size: int, constants: dict) -> TrainLoader:
        """Fresh random crops, flipped every other time, of one training pass after another."""
        return TrainLoader(
            dataset,
            self.img_size,
            batch_size,
            scale=tuple(constants["scale"]),
            interpolation=constants["crop_interpolation"],
            seed=constants["seed"],
            num_workers=self.num_workers,
        )

    def features(self, split: str, parts: Iterable[str], constants: dict) -> FeatureSet:
        """The parts of every image of a split ("train" or "test"), in the protocol's test view: made once."""
        dataset, entry = self.dataset(split), self._entry(split, constants)
        view = {key: constants[key] for key in VIEW}
        self.take_statistics()
        entry.take(
            parts,
            len(dataset),
            self.encoder.taps,
            lambda start: self._rest(split, view, start),
            f"{split} images",
            lambda share, missing, start: spread("features", (self._statistics(), split, view, missing, start), share),
        )
        return FeatureSet(entry, dataset.labels)

    def _rest(self, split: str, view: dict, start: int) -> EvalLoader:
        """The images of a split from a row on."""
        dataset = self.dataset(split)
        return self.view(dataset, np.arange(start, len(dataset)), **view)

    def helpers(self) -> dict[str, Callable[..., Share]]:
        """Name of a pass -> the share of a process that does not lead; see `a2mim.processes.leading.lead`."""
        return {"features": self._share_features, "crops": self._share_crops}

    def _share_features(self, statistics: dict, split: str, view: dict, missing: list[str], start: int) -> Share:
        self._take_over(statistics)
        return share_of(self._rest(split, view, start), extracting(self.encoder.taps, missing))

    def _share_crops(self, statistics: dict, views: tuple, epoch: int) -> Share:
        self._take_over(statistics)
        rows, parts, classes, constants = views
        key = hash_of([rows.tolist(), parts, constants])
        if key not in self._views:  # its data processes live on from pass to pass
            self._views = {key: self._random_views(rows, parts, classes, constants)[0]}
        return self._views[key].share(epoch)

    def _statistics(self) -> dict[str, Tensor]:
        """BatchNorm's statistics, for the processes that have not calibrated it."""
        return batchnorm_statistics(self.model) if self.calibrate else {}

    def _take_over(self, statistics: dict[str, Tensor]) -> None:
        load_statistics(self.model, statistics)

    def dataset(self, split: str) -> ImageDataset:
        return self.train if split == "train" else self.test

    def _entry(self, split: str, constants: dict) -> Entry:
        dataset, view = self.dataset(split), {key: constants[key] for key in VIEW}
        key = (split, *view.values())
        if key not in self._entries:
            title = f"{dataset.title} through {self.encoder.name}"
            self._entries[key] = self.cache.entry(self._identity(dataset) | view, title)
        return self._entries[key]

    def probe_forward(self, parts: Iterable[str]) -> tuple[dict[str, int], float]:
        """({part: bytes of an image}, seconds an image), from a forward pass over noise."""
        images = torch.randint(0, 256, (min(self.batch_size, PROBED), self.encoder.channels, *self.img_size))
        run = self.encoder.taps(parts)
        run(images[:1].byte())  # the first call pays for allocations
        started = time.perf_counter()
        found = run(images.byte())
        seconds = (time.perf_counter() - started) / len(images)
        return {part: value[0].nbytes for part, value in found.items()}, seconds

    def missing_bytes(self, split: str, sizes: dict[str, int], constants: dict) -> int:
        """What the cache will hold of a split's features in this view."""
        return self._entry(split, constants).missing_bytes(sizes, len(self.dataset(split)))

    def missing(self, split: str, parts: Iterable[str], constants: dict) -> bool:
        """Whether a pass over the images of a split is still needed."""
        return self._entry(split, constants).lacks(parts, len(self.dataset(split)))

    def _identity(self, dataset: ImageDataset) -> dict:
        return {
            "encoder": self.encoder.hash,
            "batchnorm": self._statistics_identity() if self.calibrate and has_batchnorm(self.model) else None,
            "timm": timm.__version__,
            "data": [dataset.fingerprint, stamp_of(dataset)],
            "form": repr(getattr(dataset, "pixel_format", None)),
            "img_size": list(self.img_size),
            **self.encoder.stats,
        }

    def _statistics_identity(self) -> list:
        """The settings on which the calibrated statistics depend, besides the encoder and the view."""
        return [self.train.fingerprint, stamp_of(self.train), DESCRIPTION]

    def training_pass(self, images: Labelled, kept: Tensor, rows: np.ndarray, constants: dict) -> TrainingPass:
        """A training pass in the view that the protocol's "train_view" says.

        Args:
            images: features and labels of the readable training images.
            kept: those to train on.
            rows: the number in the training set of every readable image.
        """
        classes, batch_size = torch.unique(images.labels), constants["batch_size"]
        if constants["train_view"] == "center":
            return CentralViews(images, kept, classes, batch_size, constants["seed"], self.device).training_pass()
        return self.random_views(rows[kept.numpy()], tuple(images.parts), classes, constants)

    def random_views(self, rows: np.ndarray, parts: Iterable[str], classes: Tensor, constants: dict) -> TrainingPass:
        """Fresh random crops of some rows of the training set."""
        self.take_statistics()
        views, batch_size = self._random_views(rows, parts, classes, constants)
        described = (rows, views.parts, classes, constants)
        views.spread = lambda share, epoch: spread("crops", (self._statistics(), described, epoch), share)
        return views.training_pass(batch_size)

    def _random_views(
        self, rows: np.ndarray, parts: Iterable[str], classes: Tensor, constants: dict
    ) -> tuple[RandomViews, int]:
        """(fresh random crops, images in a full batch)."""
        batch_size, loaded, together = crop_batches(constants["batch_size"], len(rows), LOADED_AT_ONCE)
        loader = self.crops(subset_of(self.train, rows), loaded, constants)
        run = self.encoder.taps(parts)
        return RandomViews(loader, run, tuple(parts), classes, together, self.batch_size, self.device), batch_size

    def pooling(self, constants: dict) -> str:
        return pooling_name(self.model, constants["pooling"])

    @functools.cached_property
    def balance(self) -> dict:
        """Images a class of each set; warns where the commonest class has far more than the rarest."""
        told = {}
        for split in ("train", "test"):
            classes, counts = np.unique(getattr(self, split).labels, return_counts=True)
            told[split] = {"classes": len(classes), "least": int(counts.min()), "most": int(counts.max())}
            if counts.max() > IMBALANCE * counts.min():
                warn_user(
                    f"the {split} set has from {counts.min()} to {counts.max()} images a class: top-1 follows the"
                    " common ones; the mean over classes is reported beside it"
                )
        absent = np.setdiff1d(self.train.labels, self.test.labels)
        return told | {"classes_without_test_images": len(absent)}

    def overlap(self, constants: dict) -> dict:
        """Counts the test images that are also in the training set, exact copies and near ones; warns with their names.

        Raises:
            ValueError: identical images have different labels in the two sets.
        """
        train, test = (self.features(split, (), constants) for split in ("train", "test"))
        self._refuse_contradictions(train, test)
        found = find_overlap(train.signatures(), test.signatures())
        sentence = overlap_sentence(
            found, lambda i: self.test.name(test.rows[i]), lambda i: self.train.name(train.rows[i])
        )
        if sentence:
            warn_user(f"{sentence}: the number flatters")
        return {kind: len(pairs) for kind, pairs in found.items()}

    def _refuse_contradictions(self, train: FeatureSet, test: FeatureSet) -> None:
        pairs = find_contradictions(train.signatures(), test.signatures(), train.labels.numpy(), test.labels.numpy())
        if not pairs:
            return
        i, j = pairs[0]
        said = (
            f"{len(pairs)} test images are training images with another label, first"
            f" {self.test.name(test.rows[i])} ({self._class(test.labels[i])}) ="
            f" {self.train.name(train.rows[j])} ({self._class(train.labels[j])})"
        )
        if not self.allow_contradictions:
            raise ValueError(
                f"{said}: the two sets number their classes differently, or a label is wrong. Give both sets the same"
                " class names, mend the labels, or add --allow-contradictions"
            )
        warn_user(said)

    def _class(self, label: Tensor) -> str:
        names = self.test.class_names if self.test.class_names and self.train.class_names else self.train.class_names
        return names[int(label)] if names and int(label) < len(names) else f"class {int(label)}"

    def about(self, constants: dict) -> dict:
        """The facts that a reader needs in order to compare this number with another."""
        said = {
            "encoder": self.encoder.name,
            "encoder_hash": self.encoder.hash,
            "loading": self.encoder.loading,
            "loaded": self.encoder.loaded,
            "data": self.train.title,
            "test_data": self.test.title,
            "data_fingerprint": hash_of([self.train.fingerprint, self.test.fingerprint]),
            "test_fingerprint": self.test.fingerprint,
            "img_size": list(self.img_size),
            "batchnorm_calibrated_on": self.take_statistics(),
            "balance": self.balance,
        }
        if "resize" in constants:
            said |= {"resize": self.resize(constants["resize"]), "interpolation": constants["interpolation"]}
        return said

    def answers(self, correct: Tensor, test: FeatureSet) -> dict:
        """ "correct" over the whole test set (-1: unreadable), its interval and the mean over classes, in percent."""
        whole = torch.full((len(self.test),), -1, dtype=torch.int8)
        whole[torch.from_numpy(test.rows)] = correct.to(torch.int8)
        _, classes, counts = test.labels.unique(return_inverse=True, return_counts=True)
        per_class = torch.bincount(classes, weights=correct.double()) / counts
        return {
            "correct": whole,
            "interval": list(bootstrap_interval(correct)),
            "top1_class_mean": 100 * per_class.mean().item(),
            "n_test": len(correct),
        }


def labelled(dataset: ImageDataset, source) -> ImageDataset:
    """Refuses a set with images that have no label."""
    missing = int((dataset.labels < 0).sum())
    if missing:
        raise ValueError(
            f"{missing} of the {len(dataset)} images in {source} have no label; give shards with .cls members,"
            " or a folder with one folder a class"
        )
    return dataset

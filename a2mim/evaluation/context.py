"""An encoder and two labelled sets: their views, their cached features, and what a result says of them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import timm
import torch
from torch import Tensor

from a2mim.batchnorm import calibrate_batchnorm
from a2mim.data import Access, EvalLoader, ImageDataset, Reading, TrainLoader, match_labels, open_dataset
from a2mim.evaluation.cache import Cache, Entry, FeatureSet
from a2mim.evaluation.calibration import DESCRIPTION, calibration_batches, calibration_loader
from a2mim.evaluation.encoder import Encoder
from a2mim.evaluation.features import class_positions, pooling_name, refuse_below_one
from a2mim.evaluation.identity import hash_of, stamp_of
from a2mim.evaluation.intervals import bootstrap_interval
from a2mim.evaluation.overlap import find_overlap, overlap_sentence
from a2mim.evaluation.probe import Labelled
from a2mim.evaluation.subsets import subset_of

RESIZE = 256 / 224  # short side before the crop, in crops: Resize(256), CenterCrop(224)
IMBALANCE = 10  # times as many images of the commonest class as of the rarest: then it is said
LOADED_AT_ONCE = 256  # random crops; larger batches are put together from features


class EvalContext:
    """An encoder and two labelled sets, with DINO's views of their images.

    Args:
        source, device, img_size, allow_partial: see `Encoder`.
        data, test_data: labelled sets, see `open_dataset`.
        batch_size: images a forward pass.
        num_workers: data processes.
        calibrate: take BatchNorm's statistics anew from training images first. None does so unless an exported folder
            brings statistics of whole images: a checkpoint has those of masked ones, a random network has none.
        cache: where features are kept; None keeps them for this process only.
        seed: of the weights, where the source is only a name.
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
        test = labelled(open_dataset(test_data, "test", **form), test_data)
        self.test = match_labels(self.train, test)
        calibrate = not self.encoder.clean_statistics if calibrate is None else calibrate
        self.calibrated = calibrate_batchnorm(self.model, self._calibration()) if calibrate else 0
        self._entries: dict[tuple, Entry] = {}

    def _calibration(self) -> Iterator[Tensor]:
        loader = calibration_loader(self.train, self.img_size, self.resize(), "bicubic", self.num_workers)
        return calibration_batches(loader, self.encoder.normalized)

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
        dataset = getattr(self, split)
        view = {key: constants[key] for key in ("resize", "interpolation")}
        key = (split, *view.values())
        if key not in self._entries:
            title = f"{dataset.title} through {self.encoder.name}"
            self._entries[key] = self.cache.entry(self._identity(dataset) | view, title)
        self._entries[key].take(
            parts,
            len(dataset),
            self.encoder.taps,
            lambda start: self.view(dataset, np.arange(start, len(dataset)), **view),
            f"{split} images",
        )
        return FeatureSet(self._entries[key], dataset.labels)

    def _identity(self, dataset: ImageDataset) -> dict:
        return {
            "encoder": self.encoder.hash,
            "batchnorm": self._calibrated_on() if self.calibrated else None,
            "timm": timm.__version__,
            "data": [dataset.fingerprint, stamp_of(dataset)],
            "form": repr(getattr(dataset, "form", None)),
            "img_size": list(self.img_size),
            **self.encoder.stats,
        }

    def _calibrated_on(self) -> list:
        """What decides the calibrated statistics, beside the encoder and the view."""
        return [self.train.fingerprint, stamp_of(self.train), self.calibrated, DESCRIPTION]

    def random_views(self, kept: np.ndarray, parts, classes: Tensor, batch_size: int, constants: dict):
        """(() -> one pass over random crops of the kept images, batches of what size, their number).

        A pass yields ({part: (b, D)} on the device, targets (b,), b). A batch larger than LOADED_AT_ONCE is put
        together from features, so that its images are never in memory at once.
        """
        batch_size = min(batch_size, len(kept))
        if batch_size > LOADED_AT_ONCE:
            batch_size -= batch_size % LOADED_AT_ONCE
        loader = self.crops(subset_of(self.train, kept), min(batch_size, LOADED_AT_ONCE), constants)
        run, together = self.encoder.taps(parts), max(1, batch_size // LOADED_AT_ONCE)

        def one_pass():
            waiting = []
            for batch in loader:
                images = batch["images"].split(self.batch_size)
                found = [run(part) for part in images]
                waiting.append(({p: torch.cat([f[p] for f in found]) for p in parts}, batch["labels"]))
                if len(waiting) == together:
                    joined = {part: torch.cat([found[part] for found, _ in waiting]) for part in parts}
                    labels = torch.cat([labels for _, labels in waiting])
                    yield joined, class_positions(classes, labels).to(self.device), len(labels)
                    waiting = []

        return one_pass, batch_size, len(loader) // together, loader

    def central_views(self, images: Labelled, kept: Tensor, parts, classes: Tensor, batch_size: int, seed: int):
        """As `random_views`, from cached features in a new order each pass; the last batch may be short."""
        generator = torch.Generator().manual_seed(seed + 1)
        batch_size = min(batch_size, len(kept))
        targets = class_positions(classes, images.labels)

        def one_pass():
            order = kept[torch.randperm(len(kept), generator=generator)]
            for rows in order.split(batch_size):
                found = {part: images.parts[part][rows].to(self.device) for part in parts}
                yield found, targets[rows].to(self.device), batch_size  # a short batch at the same rate

        return one_pass, batch_size, -(-len(kept) // batch_size), None

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
                warnings.warn(
                    f"the {split} set has from {counts.min()} to {counts.max()} images a class: top-1 follows the"
                    " common ones; the mean over classes is reported beside it",
                    stacklevel=2,
                )
        absent = np.setdiff1d(self.train.labels, self.test.labels)
        return told | {"classes_without_test_images": len(absent)}

    def overlap(self, constants: dict) -> dict:
        """Counts of test images that training has too, exactly and nearly; warns of them by name."""
        train, test = (self.features(split, (), constants) for split in ("train", "test"))
        found = find_overlap(train.signatures(), test.signatures())
        sentence = overlap_sentence(
            found, lambda i: self.test.name(test.rows[i]), lambda i: self.train.name(train.rows[i])
        )
        if sentence:
            warnings.warn(f"{sentence}: the number flatters", stacklevel=2)
        return {kind: len(pairs) for kind, pairs in found.items()}

    def about(self, constants: dict) -> dict:
        """What a reader needs to compare a number with another."""
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
            "batchnorm_calibrated_on": self.calibrated,
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

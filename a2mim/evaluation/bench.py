"""A named protocol from an encoder and two labelled sets to a result: what tools/knn.py and tools/linear_probe.py
call.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from a2mim.batchnorm import calibrate_batchnorm
from a2mim.data import EvalLoader, ImageDataset, TrainLoader, match_labels, open_dataset
from a2mim.devices import choose_device
from a2mim.evaluation.features import extract_features, pooling_name, refuse_below_one, unreadable_of
from a2mim.evaluation.intervals import wilson_interval
from a2mim.evaluation.knn import check_constants, knn
from a2mim.evaluation.linear import hold_out, linear_probe
from a2mim.evaluation.linear_dino import linear_probe_dino
from a2mim.loading import build, read_source
from a2mim.pixels import normalize

RESIZE = 256 / 224  # short side before the crop, in crops: Resize(256), CenterCrop(224)
CALIBRATION_IMAGES = 1024


class Bench:
    """An encoder and two labelled sets, with DINO's views of their images.

    Args:
        source: what `load_encoder` takes.
        data, test_data: labelled sets, see `open_dataset`.
        device: "cpu", "cuda", …; None takes a GPU where there is one.
        img_size: pixels; None is the encoder's own.
        batch_size: images a forward pass.
        num_workers: data processes.
        calibrate: take BatchNorm's statistics anew from training images first. None does so unless an exported folder
            brings statistics of whole images: a checkpoint has those of masked ones, a random network has none.

    Test labels are numbered by the training set's class names, see `match_labels`.
    """

    def __init__(
        self, source, data, test_data, device=None, img_size=None, batch_size=64, num_workers=0, calibrate=None
    ):
        refuse_below_one(batch_size=batch_size, img_size=img_size)
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} must be at least 0")
        self.device = choose_device(device)
        found = read_source(source)
        self.model, self.pixels = build(found, **({} if img_size is None else {"img_size": img_size}))
        self.model.to(self.device)
        channels = len(self.pixels["mean"])
        self.train = labelled(open_dataset(data, "train", channels), data)
        test = labelled(open_dataset(test_data, "test", channels), test_data)
        self.test = match_labels(self.train, test)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.img_size = tuple(self.pixels["img_size"])
        self.resize = round(max(self.img_size) * RESIZE)
        self.stats = {key: self.pixels[key] for key in ("mean", "std")}
        calibrate = not found.calibrated if calibrate is None else calibrate
        self.calibrated = calibrate_batchnorm(self.model, self._clean()) if calibrate else 0

    def _clean(self) -> Iterator[Tensor]:
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:CALIBRATION_IMAGES]
        for batch in self.view(self.train, chosen.sort().values):
            yield normalize(batch["images"].to(self.device), **self.stats)

    def view(self, dataset: ImageDataset, indices=None) -> EvalLoader:
        """Resize bicubic, central crop."""
        return EvalLoader(
            dataset, self.img_size, self.resize, "bicubic", self.batch_size, self.num_workers, indices=indices
        )

    def constants(self) -> dict:
        """What a reader needs to compare the number with another."""
        return {
            "img_size": list(self.img_size),
            "resize": self.resize,
            "interpolation": "bicubic",
            "batchnorm_calibrated_on": self.calibrated,
        }

    def result(self, found: dict, *loaders) -> dict:
        """The protocol's result with its interval and constants, plain values only; "unreadable" counts the images that
        the loaders could not read: those of the test set are not judged, so not in "n_test" either.
        """
        interval = wilson_interval(int(found["correct"].sum()), found["n_test"])
        plain = {key: value for key, value in found.items() if not isinstance(value, Tensor)}
        return plain | {"interval": list(interval), "unreadable": unreadable_of(*loaders)} | self.constants()


def labelled(dataset: ImageDataset, source) -> ImageDataset:
    """Refuses a set with images that have no label."""
    missing = int((dataset.labels < 0).sum())
    if missing:
        raise ValueError(
            f"{missing} of the {len(dataset)} images in {source} have no label; give shards with .cls members,"
            " or a folder with one folder a class"
        )
    return dataset


def run_knn(bench: Bench, k: int = 20, temperature: float = 0.07, pooling: str = "default") -> dict:
    """DINO's weighted k-NN."""
    check_constants(k, temperature)
    loaders = bench.view(bench.train), bench.view(bench.test)
    sets = [part for loader in loaders for part in extract_features(bench.model, loader, pooling, **bench.stats)]
    found = knn(*sets, k=k, temperature=temperature) | {"pooling": pooling_name(bench.model, pooling)}
    return bench.result(found, *loaders)


def run_linear(
    bench: Bench, protocol: str = "dino-linear", epochs: int = 100, n_last_blocks: int | None = None, seed: int = 0
) -> dict:
    """A linear classifier on the frozen encoder.

    Args:
        protocol: "dino-linear" trains on freshly augmented crops each epoch; "linear-cached" on one central crop an
            image, which takes one pass over the images in all.
    """
    refuse_below_one(epochs=epochs)
    if protocol == "linear-cached":
        loaders = bench.view(bench.train), bench.view(bench.test)
        sets = [part for loader in loaders for part in extract_features(bench.model, loader, **bench.stats)]
        found = linear_probe(*sets, epochs=epochs, seed=seed) | {"pooling": pooling_name(bench.model, "default")}
        return bench.result(found, *loaders)
    if protocol != "dino-linear":
        raise ValueError(f"protocol {protocol!r} is not known; choose dino-linear or linear-cached")
    labels = torch.from_numpy(bench.train.labels)
    crops = TrainLoader(
        bench.train,
        bench.img_size,
        min(256, len(bench.train)),
        scale=(0.08, 1.0),
        interpolation="bilinear",
        seed=seed,
        num_workers=bench.num_workers,
    )
    test = bench.view(bench.test)
    found = linear_probe_dino(
        bench.model,
        crops,
        labels,
        bench.view(bench.train, hold_out(labels, 0.1, seed).numpy()),
        test,
        epochs=epochs,
        n_last_blocks=n_last_blocks,
        seed=seed,
        **bench.stats,
    )
    return bench.result(found, crops, test)  # a training image counts each time that it was to be shown

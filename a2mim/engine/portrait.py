"""The pictures of a run's features: representation/ in its folder, drawn once, when the encoder is judged."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import torch

from a2mim.analysis.representation import Album, Sample, add_feature_maps, add_neighbours, add_spectrum
from a2mim.data import EvalLoader
from a2mim.engine.judging import Judge
from a2mim.engine.records import step_seed
from a2mim.evaluation.calibration import calibration_rows

FOLDER = "representation"
MAPS, QUERIES, BANK = 6, 8, 256  # images


def draw_portrait(judge: Judge, encoders: dict, model, folder: Path) -> None:
    """Writes representation/. Whatever fails here leaves out that picture, with a warning, and never ends a run.

    Args:
        encoders: "before" and "after": `MaskedEncoder`s, calibrated, on the judge's device.
        model: the trained `MIM`, whose reconstructions' spectrum is drawn; None where nothing is reconstructed.
    """
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    album = Album(folder / FOLDER)
    queries, bank = samples(judge)
    networks = {when: encoder.model for when, encoder in encoders.items()}
    few = Sample(queries.images[:MAPS], queries.classes[:MAPS])
    drawings = [
        lambda: add_feature_maps(album, encoders, few, judge.pixels),
        lambda: add_neighbours(album, networks, queries, bank, judge.pixels),
    ]
    if model is not None:
        seen = bank if model.encoder.img_size == judge.pixels.img_size else samples(judge, model.encoder.img_size)[1]
        drawings.append(lambda: _spectrum(album, model, seen, judge))
    for draw in drawings:
        try:
            draw()
        except Exception as error:
            warnings.warn(f"the report lacks a picture of the features: {error}", stacklevel=2)
    album.write()


def samples(judge: Judge, size: int | tuple[int, int] | None = None) -> tuple[Sample, Sample]:
    """Images to look at, and a bank of training images; as many of every class. No image is in both.

    Args:
        size: pixels, or (H, W); None: the judge's.
    """
    train, test = judge.train_set, judge.test.dataset if judge.test is not None else None
    if test is not None:
        rows = calibration_rows(test, QUERIES, judge.seed, np.flatnonzero(test.labels >= 0))
        return _read(judge, test, rows, size), _read(judge, train, calibration_rows(train, BANK, judge.seed), size)
    rows = calibration_rows(train, QUERIES + BANK, judge.seed)
    number = min(QUERIES, len(rows) // 2)
    return _read(judge, train, rows[:number], size), _read(judge, train, rows[number:], size)


def _read(judge: Judge, dataset, rows: np.ndarray, size: int | tuple[int, int] | None) -> Sample:
    """Central crops of some rows; those that cannot be read are left out."""
    batches = list(EvalLoader(dataset, size or judge.img_size, resize=None, batch_size=64, indices=rows))
    names = dataset.class_names or judge.train_set.class_names
    classes = []
    for label in torch.cat([torch.as_tensor(batch["labels"]) for batch in batches]).tolist():
        named = names is not None and 0 <= label < len(names)
        classes.append(str(names[label]) if named else "" if label < 0 else f"class {label}")
    return Sample(torch.cat([batch["images"] for batch in batches]), classes)


def _spectrum(album: Album, model, sample: Sample, judge: Judge) -> None:
    """Of the images and of the answers to them; nothing where the target is no image."""
    device = judge.device
    generator = torch.Generator(device).manual_seed(step_seed(judge.seed, 0, 0, "spectrum"))
    was, place = model.training, next(model.parameters()).device
    model.to(device).eval()
    with torch.no_grad():
        shown = model(sample.images[:64].to(device), mode="predict", generator=generator)
    model.train(was).to(place)
    if shown["target"].shape == shown["images"].shape:
        add_spectrum(album, shown["target"], shown["recon"])

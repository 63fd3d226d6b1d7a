"""What refinement opens before it builds a model: images, the source, completed settings."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np

from a2mim.data import Access, ImageDataset
from a2mim.engine.assembly import open_sets
from a2mim.engine.labelled_data import complete_pixels, pixels_of
from a2mim.engine.records import Request, TaskData
from a2mim.engine.refine.refiner import VIEWS
from a2mim.engine.refine_settings import Heads, RefineSettings
from a2mim.pixels import Preprocessing
from a2mim.weights.loading import Source, read_source
from a2mim.wiring.timm_models import is_registered

QUEUE_SHARE = 4  # the queue holds at most one of so many images
CLASS_SHARE = 2  # at most one of so many images of the smallest class is a neighbour to choose from


@dataclass(frozen=True)
class RefineSets(TaskData):
    """See `TaskData`.

    Args:
        source: the encoder's architecture and weights; None for a run that goes on from a checkpoint.
        queue: places of the queues. k: neighbours to choose from. Both fit the number of images.
    """

    source: Source | None = field(kw_only=True)
    queue: int = field(kw_only=True)
    k: int = field(kw_only=True)


def open_refined(
    settings: RefineSettings, request: Request, saved: dict | None = None, access: Access | None = None
) -> RefineSets:
    """Opens data and source; nothing is written.

    Args:
        saved: the `meta` of the checkpoint that the run goes on from, or None.
        access: how data are reached.

    Raises:
        ValueError, FileNotFoundError: there is no source, its weights are random, or the data do not fit.
    """
    if saved:
        source, pixels = None, Preprocessing.of(saved["pixels"])
    else:
        source = read_to_refine(request.source)
        pixels = known_pixels(source)
    settings = complete_pixels(settings, pixels)
    train_set, test_set = open_sets(request.data, request.test_data, settings.data, access or Access())
    queue, k = saved["sizes"] if saved else sizes_for(train_set, settings.heads)
    return RefineSets(settings, train_set, test_set, {"views": VIEWS}, source=source, queue=queue, k=k)


def read_to_refine(source: str | None) -> Source:
    """The source, read; ValueError where there is none, and a warning where it is a name alone."""
    if source is None:
        raise ValueError(
            "refinement needs a SOURCE: the folder of a pre-training run, an exported folder, a checkpoint, NAME:FILE"
            " or NAME:pretrained"
        )
    read = read_source(source)
    if read.tensors is None:
        warnings.warn(
            f"{source} is a name with random weights: refinement is for pre-trained encoders (a2mim pretrain, or"
            f" {source}:pretrained for timm's weights)",
            stacklevel=2,
        )
    return read


def known_pixels(source: Source) -> Preprocessing:
    """The preprocessing of a source; for a network of the user's own, what its folder states."""
    if source.preprocessing is not None or is_registered(source.name):
        return pixels_of(source)
    return Preprocessing.of({}, 224)


def sizes_for(dataset: ImageDataset, heads: Heads) -> tuple[int, int]:
    """(places of the queue, neighbours): at most a quarter of the images, and half of the smallest class that has any.

    Streams do not know their labels beforehand; there k follows from the recipe and the queue.
    """
    images = dataset.stream.images_per_epoch if dataset.stream else len(dataset)
    queue = max(1, min(heads.queue, images // QUEUE_SHARE))
    k = min(heads.k, queue)
    labels = dataset.labels[dataset.labels >= 0]
    if len(labels) and not dataset.stream:
        counts = np.bincount(labels)
        k = min(k, max(1, int(counts[counts > 0].min()) // CLASS_SHARE))
    return queue, k

"""Training passes of linear protocols: batches of features, of fresh random crops or of cached central views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from a2mim.data import TrainLoader
from a2mim.evaluation.features import class_positions
from a2mim.evaluation.parts import Part, counted, in_this_process, share_of
from a2mim.evaluation.probe import Labelled, TrainingBatch
from a2mim.processes.leading import Share


@dataclass(frozen=True)
class TrainingPass:
    """Training images as features. Each iteration over it is a new pass, in a new order.

    Args:
        make: starts a pass.
        batch_size: images in a full batch.
        steps: batches in a pass.
        loader: its `faults` count the unreadable images of the last pass; None where features are cached.
    """

    make: Callable[[], Iterator[TrainingBatch]]
    batch_size: int
    steps: int
    loader: TrainLoader | None = None

    def __iter__(self) -> Iterator[TrainingBatch]:
        return self.make()


@dataclass
class CentralViews:
    """Cached features, shuffled anew for each pass; the last batch may be short, at the same learning rate.

    Args:
        images: features and labels.
        kept: rows to train on.
        classes: (C,) sorted labels; targets are positions in it.
        seed: of the order.
        device: of the batches.
    """

    images: Labelled
    kept: Tensor
    classes: Tensor
    batch_size: int
    seed: int
    device: torch.device
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, len(self.kept))
        self.generator = torch.Generator().manual_seed(self.seed + 1)
        self.targets = class_positions(self.classes, self.images.labels)

    def training_pass(self) -> TrainingPass:
        return TrainingPass(self._batches, self.batch_size, -(-len(self.kept) // self.batch_size))

    def _batches(self) -> Iterator[TrainingBatch]:
        order = self.kept[torch.randperm(len(self.kept), generator=self.generator)]
        for rows in order.split(self.batch_size):
            parts = {part: features[rows].to(self.device) for part, features in self.images.parts.items()}
            yield TrainingBatch(parts, self.targets[rows].to(self.device), self.batch_size)


@dataclass
class RandomViews:
    """Features of fresh random crops.

    A batch of features is put together from several batches of the loader, so that the images of a large batch are
    never in memory at once.

    Args:
        loader: random crops of the images to train on.
        extract: images as the loader gives them -> {part: (B, D)}.
        parts: names of the parts.
        classes: (C,) sorted labels; targets are positions in it.
        together: loader batches in a batch of features.
        at_once: images in a forward pass.
        device: of the features and targets.
        spread: (this process's share, the epoch) -> the results of all batches, in order; several processes may
            compute them.
    """

    loader: TrainLoader
    extract: Callable[[Tensor], dict[str, Tensor]]
    parts: Iterable[str]
    classes: Tensor
    together: int
    at_once: int
    device: torch.device
    spread: Callable[[Share, int], Iterator[Part]] = in_this_process

    def training_pass(self, batch_size: int) -> TrainingPass:
        return TrainingPass(self._batches, batch_size, len(self.loader) // self.together, self.loader)

    def share(self, epoch: int) -> Share:
        """This process's share of a pass."""
        return share_of(self.loader, self._features, epoch)

    def _batches(self) -> Iterator[TrainingBatch]:
        epoch, waiting = self.loader.epoch, list[Part]()
        images = self.loader.images_until(epoch, len(self.loader))
        for part in counted(self.loader, self.spread(self.share(epoch), epoch), images):
            waiting.append(part)
            if len(waiting) == self.together:
                parts = {name: torch.cat([each.found[name] for each in waiting]).to(self.device) for name in self.parts}
                labels = torch.cat([each.labels for each in waiting if each.labels is not None])
                yield TrainingBatch(parts, class_positions(self.classes, labels).to(self.device), len(labels))
                waiting = []
        self.loader.seek(self.loader.position_of(epoch + 1))

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        found = [self.extract(some) for some in images.split(self.at_once)]
        return {part: torch.cat([features[part] for features in found]) for part in self.parts}


def crop_batches(batch_size: int, images: int, at_once: int) -> tuple[int, int, int]:
    """(images in a batch of features, in a batch of the loader, loader batches in a batch of features)."""
    batch_size = min(batch_size, images)
    if batch_size > at_once:
        batch_size -= batch_size % at_once
    return batch_size, min(batch_size, at_once), max(1, batch_size // at_once)

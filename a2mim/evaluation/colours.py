"""k-NN on histograms of colour: what is known of an image without any network.

Crops of one image share their colours, so a network that contrasts crops may learn colours and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from a2mim.evaluation.features import images_and_labels
from a2mim.evaluation.knn import knn
from a2mim.pixels import normalize

BINS = 8  # a channel, of 3 channels together: 512
ALONE = 32  # a channel, where there are not 3


def colour_knn(train_loader: Iterable, test_loader: Iterable, k: int = 20) -> float:
    """Top-1 in percent. The loaders hand out stored images with labels, as for `a2mim.evaluation.judge`."""
    (train, labels), (test, test_labels) = map(_of_loader, (train_loader, test_loader))
    return float(knn(train, labels, test, test_labels, k=k)["top1"])


def _of_loader(loader: Iterable) -> tuple[Tensor, Tensor]:
    parts, labels = [], []
    for batch in loader:
        images, targets = images_and_labels(batch)
        parts.append(histograms(normalize(images, (0.0,) * images.shape[1], (1.0,) * images.shape[1])))
        labels.append(torch.as_tensor(targets, dtype=torch.int64))
    return torch.cat(parts), torch.cat(labels)


def histograms(images: Tensor) -> Tensor:
    """(B, C, H, W) float in 0..1 -> (B, D): square roots of the shares of pixels, so that unit length follows."""
    channels = images.shape[1]
    bins = BINS if channels == 3 else ALONE
    cells = (images * bins).long().clamp(0, bins - 1).flatten(2)  # (B, C, N)
    if channels == 3:
        cells = ((cells[:, 0] * bins + cells[:, 1]) * bins + cells[:, 2])[:, None]
        bins **= 3
    counts = torch.zeros(len(images), cells.shape[1], bins).scatter_add_(2, cells, torch.ones(cells.shape))
    return (counts.flatten(1) / counts.flatten(1).sum(dim=1, keepdim=True)).sqrt()

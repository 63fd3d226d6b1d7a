"""Repeated augmentation: a batch holds several crops of each image.

Source: https://arxiv.org/abs/1901.09335. As in DeiT and timm, the number of steps in an epoch does not change, so an
epoch shows 1 / times of the images.
"""

import copy

import numpy as np

from a2mim.data import keyed
from a2mim.data.dataset import ImageDataset


def repeated(dataset: ImageDataset, times: int) -> ImageDataset:
    """The set with `times` copies of each image. Number i + c * N is copy c of image i and has its own key."""
    copies = copy.copy(dataset)
    copies.__dict__.pop("fingerprint", None)
    copies.store = _Again(dataset.store, len(dataset))
    keys = [keyed.hashes(c, 0, dataset.keys, 1, keyed.COPY)[:, 0] for c in range(1, times)]
    copies.keys, copies.labels = np.concatenate([dataset.keys, *keys]), np.tile(dataset.labels, times)
    return copies


def repeat_order(order: np.ndarray, times: int) -> np.ndarray:
    """(N,) ids of an epoch -> (N,) ids: all copies of its first N / times images; copies of an image are adjacent."""
    first = order[: -(-len(order) // times)]
    return (first[:, None] + len(order) * np.arange(times)[None, :]).reshape(-1)[: len(order)]


def views_of(ids: np.ndarray, number: int, views: int) -> np.ndarray:
    """(N,) ids of a set of `number` images -> (N * views,) ids of their copies; those of an image are adjacent."""
    return (ids[:, None] + number * np.arange(views)[None, :]).reshape(-1)


class _Again:
    """A store that starts again at image 0 after the last image."""

    def __init__(self, store, length: int):
        self.store, self.length = store, length

    @property
    def nearby(self) -> int:
        """Number of images that can be read quickly."""
        return min(self.length, getattr(self.store, "nearby", self.length))

    def content(self, i: int):
        return self.store.content(int(i) % self.length)

    def name(self, i: int) -> str:
        return self.store.name(int(i) % self.length)

    def will_need(self, ids: np.ndarray) -> None:
        if hasattr(self.store, "will_need"):
            self.store.will_need(np.unique(ids % self.length))

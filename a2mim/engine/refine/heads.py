"""A contrastive head on one feature map, with a queue of earlier images in which it looks for neighbours."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.distributed.nn.functional
import torch.nn.functional as F
from torch import Tensor, nn

EMPTY = -1  # sample id of a place in the queue that nothing was put into


class Queue(nn.Module):
    """Embeddings of the last images, first in, first out. All of it is in the state dictionary.

    Args:
        size: places. width: of an embedding.
    """

    embeddings: Tensor
    ids: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int):
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(size, width))
        self.register_buffer("ids", torch.full((size,), EMPTY, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def neighbours(self, wanted: Tensor, ids: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
        """For each of `wanted` (N, D), one of its k nearest by cosine, at random; (N, D).

        Args:
            wanted: unit vectors. ids: (N,) their samples, whose own embeddings do not count.
            generator: of the choice, on the same device.

        A sample that finds nothing, because the queue is still empty, is its own neighbour.
        """
        likeness = wanted @ self.embeddings.T
        strange = (self.ids == EMPTY) | (self.ids == ids[:, None])
        best, places = likeness.masked_fill(strange, -torch.inf).topk(min(k, len(self.ids)), dim=1)
        number = (best > -torch.inf).sum(dim=1)
        uniform = torch.rand(len(wanted), generator=generator, device=wanted.device)
        chosen = torch.minimum((uniform * number).long(), (number - 1).clamp_min(0))
        found = self.embeddings[places.gather(1, chosen[:, None])[:, 0]]
        return torch.where(number[:, None] > 0, found, wanted)

    @torch.no_grad()
    def put(self, embeddings: Tensor, ids: Tensor) -> None:
        """Takes in (N, D) unit vectors and their (N,) samples in place of the oldest."""
        size = len(self.ids)
        embeddings, ids = embeddings[-size:], ids[-size:]
        places = (self.pointer + torch.arange(len(ids), device=ids.device)) % size
        self.embeddings[places] = embeddings.to(self.embeddings.dtype)
        self.ids[places] = ids
        self.pointer.copy_((self.pointer + len(ids)) % size)


class Head(nn.Module):
    """Projector, predictor and queue of one map.

    Args:
        channels: width of the map. hidden: of the projector's two inner layers. predicted: of the predictor's inner
            layer. width: of the embedding.
        queue: places of the queue.
        momentum: of a copy of the projector that follows it and whose embeddings are looked up and kept; 0: the
            projector itself.

    Source: MAE-CT, https://arxiv.org/abs/2304.10520, on NNCLR, https://arxiv.org/abs/2104.14548.
    """

    def __init__(
        self,
        channels: int,
        queue: int,
        hidden: int = 2048,
        predicted: int = 4096,
        width: int = 256,
        momentum: float = 0.0,
    ):
        super().__init__()
        self.projector = nn.Sequential(
            *_layer(channels, hidden),
            *_layer(hidden, hidden),
            nn.Linear(hidden, width, bias=False),
            nn.BatchNorm1d(width),
        )
        self.predictor = nn.Sequential(*_layer(width, predicted), nn.Linear(predicted, width))
        self.queue, self.momentum = Queue(queue, width), momentum
        self.slow = copy.deepcopy(self.projector).requires_grad_(False) if momentum else None

    def forward(
        self, pooled: Tensor, ids: Tensor, k: int, temperature: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of two views of N images, told from all images of the batch, those of other processes included.

        Args:
            pooled: (2, N, D), means of the map.
            ids: (N,) samples.
            k: nearest neighbours to choose from.
            temperature: of the softmax.
            generator: of that choice.
        """
        views = pooled.flatten(0, 1)
        projected = self.projector(views)
        predicted = F.normalize(self.predictor(projected).float(), dim=1).chunk(2)
        with torch.no_grad():
            kept = projected.detach() if self.slow is None else self.slow(views)
            kept = F.normalize(kept.float(), dim=1)
            found = self.queue.neighbours(kept, ids.repeat(2), k, generator).chunk(2)
            self.queue.put(*gather(kept.chunk(2)[0], ids))
        rank = torch.distributed.get_rank() if _processes() > 1 else 0
        rows = torch.arange(len(ids), device=pooled.device) + rank * len(ids)
        everyone = [gather_with_gradient(view) for view in predicted]
        there, back = (
            F.cross_entropy(found[one] @ everyone[other].T / temperature, rows) for one, other in ((0, 1), (1, 0))
        )
        return (there + back) / 2

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the slow projector a step towards the projector."""
        if self.slow is None:
            return
        for slow, fast in zip(self.slow.parameters(), self.projector.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)


def _layer(channels: int, width: int) -> Iterator[nn.Module]:
    """Linear, BatchNorm, ReLU."""
    yield from (nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())


def _processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def gather_with_gradient(views: Tensor) -> Tensor:
    """(N, D) of each process -> (processes * N, D) in the order of their ranks. A process gets back the gradients that
    its rows have in the losses of all.
    """
    return views if _processes() == 1 else torch.cat(torch.distributed.nn.functional.all_gather(views))


def gather(embeddings: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(embeddings, ids) of all processes in the order of their ranks, so that every process keeps the same queue."""
    number = _processes()
    if number == 1:
        return embeddings, ids
    parts = [torch.empty_like(embeddings) for _ in range(number)], [torch.empty_like(ids) for _ in range(number)]
    for gathered, own in zip(parts, (embeddings, ids), strict=True):
        torch.distributed.all_gather(gathered, own.contiguous())
    return torch.cat(parts[0]), torch.cat(parts[1])

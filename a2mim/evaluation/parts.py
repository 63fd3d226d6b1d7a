"""What the batches of a pass over images give, computed by one process or by several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from a2mim.data import TrainLoader
from a2mim.processes.leading import Share, is_leading


@dataclass(frozen=True)
class Part:
    """What one batch gave.

    Args:
        found: name -> (B, …) on the device of the pass; on the CPU where other processes take part.
        labels, ids: (B,) int64, where the loader's batches have them.
        rank: of the process that computed it.
        faults: new faults of images by reason, and `names` of new unreadable images, of this process.
    """

    found: Mapping[str, Tensor]
    labels: Tensor | None = None
    ids: Any = None
    rank: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()


def share_of(loader: Iterable, compute: Callable[[Tensor], Mapping[str, Tensor]], epoch: int | None = None) -> Share:
    """This process's share of a pass, as `Part`s. A batch without a readable image gives a part without numbers.

    Args:
        loader: its `share` is asked for where there are several processes.
        compute: images as the loader gives them -> name -> (B, …).
        epoch: of a TrainLoader.
    """

    def share(rank: int, size: int) -> Iterator[Part]:
        known, named = _faults_of(loader) if epoch is not None else (Counter[str](), ())
        for batch in _batches(loader, epoch, rank, size):
            values = batch if isinstance(batch, Mapping) else dict(zip(("images", "labels"), batch, strict=True))
            images, labels = values["images"], values.get("labels")
            found = dict(compute(images)) if len(images) else {}
            faults, names = _faults_of(loader)
            yield Part(
                {name: value.cpu() for name, value in found.items()} if size > 1 else found,
                None if labels is None else torch.as_tensor(labels, dtype=torch.int64),
                values.get("ids"),
                rank,
                dict(faults - known),
                names[len(named) :],
            )
            known, named = faults, names

    return share


def _faults_of(loader) -> tuple[Counter[str], tuple[str, ...]]:
    """What the loader has counted so far, and the first names; nothing for a loader that counts none."""
    faults = getattr(loader, "faults", {})
    return Counter(faults), tuple(getattr(faults, "names", ()))


def in_this_process(share: Share, *arguments: Any) -> Iterator[Part]:
    """The whole pass, whatever its arguments are."""
    return share(0, 1)


def _batches(loader, epoch: int | None, rank: int, size: int) -> Iterator:
    if epoch is not None:
        return loader.share(epoch, rank, size)
    return iter(loader) if size == 1 else loader.share(rank, size)


def counted(loader, parts: Iterable[Part], images: int) -> Iterator[Part]:
    """The parts that hold numbers; the faults of other processes are counted in the loader of this one.

    Args:
        loader: an EvalLoader or a TrainLoader, where several processes take part.
        images: of the whole pass, for the question whether too many are unreadable.

    Raises:
        UnreadableData: see `Faults.receive`, and `EvalLoader.check_shown`.
    """
    shared, shown = is_leading(), 0
    for part in parts:
        if part.rank:
            loader.faults.take_over(part.faults, part.names, images)
        if part.found:
            shown += 1
            yield part
    if shared and not isinstance(loader, TrainLoader):
        loader.check_shown(shown)

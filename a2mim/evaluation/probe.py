"""Many linear heads on several kinds of features of one forward pass; the best is chosen on held-out images.

The test set is used to report, never to choose.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from a2mim.evaluation.features import check_features, class_positions
from a2mim.evaluation.heads import losses_of, ranks_of
from a2mim.text import ProgressBar

_LOGIT_BYTES = 2**27  # of scores held at once when heads are tested


@dataclass
class Labelled:
    """Images as features: parts {name: (n, D)}, maybe on disk, and labels (n,) int64."""

    parts: dict[str, Tensor]
    labels: Tensor

    def join(self, names: Iterable[str], rows: Tensor | slice) -> Tensor:
        """(n, D) of some rows, the named parts side by side."""
        return torch.cat([self.parts[name][rows] for name in names], dim=1)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TrainingBatch:
    """Features of some training images.

    Args:
        parts: {name: (b, D)}, on the device of the heads.
        targets: (b,) int64, positions in the sorted classes.
        size: images that the learning rate is scaled by; b is less where some of them do not count.
    """

    parts: dict[str, Tensor]
    targets: Tensor
    size: int


class Heads(Protocol):
    """Several heads trained on the same batches: LinearHeads, LarsHeads or AttentiveHeads."""

    n_classes: int

    def step(self, features: Tensor, targets: Tensor, factor: float) -> None:
        """One update of all heads on features (B, D); `factor` multiplies their peak learning rates."""

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) -> (H, C, B): the scores of each head."""


@dataclass
class Stack:
    """Heads that read the same parts."""

    name: str
    parts: tuple[str, ...]
    heads: Heads
    base_lrs: list[float]  # of each head, per 256 images


def probe(
    stacks: list[Stack],
    training: Iterable[TrainingBatch],
    classes: Tensor,
    held: Labelled,
    test: Labelled,
    epochs: int,
    factor: Callable[[float], float],
    epoch_length: int | None = None,
    per_iteration: bool = False,
    track_best: bool = True,
) -> dict:
    """Trains all heads of all stacks on the same batches, chooses one on `held`, reports it on `test`.

    Args:
        training: the training images; each iteration over it is a new pass.
        classes: (C,) sorted labels of the training set; targets are positions in it.
        epochs: of one pass, or of `epoch_length` iterations, in which passes follow one another.
        factor: epochs done, in [0, epochs) -> share of the peak rate, asked at every step or at every epoch.
        track_best: also count, after every epoch, how many test images each head has right.

    Returns:
        "top1", "top5" (percent, last epoch, chosen head), "correct" (M,) bool, "head", "base_lr", "held_out_top1", and
        with track_best "best_top1" and "best_epoch" (from 1) of the same head: chosen on the test set, so they flatter.
    """
    test_targets, history = class_positions(classes, test.labels), []
    after = (lambda: history.append([_right(stack, test, test_targets) for stack in stacks])) if track_best else None
    batch_size = _train(stacks, training, epochs, epoch_length, factor, per_iteration, after)
    s, h, accuracy = _choose(stacks, held, class_positions(classes, held.labels))
    chosen = stacks[s]
    rank = _judge(chosen, test, test_targets)[0][:, h]
    result = {
        "top1": 100 * (rank == 0).double().mean().item(),
        "top5": 100 * (rank < 5).double().mean().item(),
        "head": chosen.name,
        "base_lr": chosen.base_lrs[h],
        "lr": chosen.base_lrs[h] * batch_size / 256,
        "held_out_top1": accuracy,
        "n_heads": sum(len(stack.base_lrs) for stack in stacks),
        "batch_size": batch_size,
        "correct": rank == 0,
    }
    if track_best:
        right = torch.stack([counts[s][h] for counts in history])
        result |= {"best_top1": 100 * right.max().item() / len(test), "best_epoch": int(right.argmax()) + 1}
    if len(chosen.base_lrs) > 1 and chosen.base_lrs[h] in (min(chosen.base_lrs), max(chosen.base_lrs)):
        result["note"] = "the chosen rate is at the end of the grid"
    return result


def check_probe(train: Labelled, test: Labelled) -> None:
    """See `check_features`, for each part."""
    for part, features in test.parts.items():
        check_features(train.parts[part], train.labels, features, test.labels)


def _train(stacks, training, epochs, epoch_length, factor, per_iteration, after) -> int:
    """The largest batch."""
    stream, largest = itertools.chain.from_iterable(itertools.repeat(training)), 0
    for epoch in ProgressBar(range(epochs), desc="linear heads", unit="epoch", leave=False):
        batches = training if epoch_length is None else itertools.islice(stream, epoch_length)
        for step, batch in enumerate(batches):
            rate = factor(epoch + step / epoch_length if per_iteration else epoch) * batch.size / 256
            for stack in stacks:
                features = torch.cat([batch.parts[part] for part in stack.parts], dim=1)
                stack.heads.step(features, batch.targets, rate)
            largest = max(largest, batch.size)
        if after:
            after()
    return largest


def _choose(stacks: list[Stack], held: Labelled, targets: Tensor) -> tuple[int, int, float]:
    """(stack, head, its accuracy in percent) that is best on held-out images; the lower loss wins ties."""
    scored = []
    for s, stack in enumerate(stacks):
        ranks, losses = _judge(stack, held, targets)
        accuracy = (ranks == 0).double().mean(dim=0)
        scored += [(-accuracy[h].item(), losses[h].item(), s, h) for h in range(len(stack.base_lrs))]
    best = min(scored)
    return best[2], best[3], -100 * best[0]


def _right(stack: Stack, test: Labelled, targets: Tensor) -> Tensor:
    """(H,) how many of the test images each head has right."""
    return (_judge(stack, test, targets)[0] == 0).sum(dim=0)


def _judge(stack: Stack, images: Labelled, targets: Tensor) -> tuple[Tensor, Tensor]:
    """((M, H) ranks, (H,) mean losses over images of known classes)."""
    ranks, losses = [], torch.zeros(len(stack.base_lrs), dtype=torch.float64)
    rows = max(1, _LOGIT_BYTES // (4 * len(stack.base_lrs) * stack.heads.n_classes))
    rows = min(rows, getattr(stack.heads, "rows_at_once", rows))
    for start in range(0, len(images), rows):
        block = slice(start, start + rows)
        logits, wanted = stack.heads.logits(images.join(stack.parts, block)), targets[block]
        ranks.append(ranks_of(logits, wanted))
        known = wanted >= 0
        if known.any():
            losses += known.sum() * losses_of(logits[:, :, known.to(logits.device)], wanted[known]).double()
    return torch.cat(ranks), losses / max(1, int((targets >= 0).sum()))

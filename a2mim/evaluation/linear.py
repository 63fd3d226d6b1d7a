"""Linear probes on cached frozen features; the learning rate is chosen inside the training set, never by the test."""

import math
from typing import Any

import torch
from torch import Tensor

from a2mim.evaluation.features import check_features, class_positions, refuse_below_one
from a2mim.evaluation.heads import LarsHeads, LinearHeads
from a2mim.evaluation.passes import TrainingPass
from a2mim.evaluation.probe import Labelled, Stack, TrainingBatch, probe
from a2mim.evaluation.shown import Record
from a2mim.protocols import read_protocol

PROTOCOLS = ("linear-cached", "dino-linear", "mae-linear")


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    protocol: str = "linear-cached",
    epochs: int | None = None,
    batch_size: int | None = None,
    base_lrs=None,
    held_out: float | None = None,
    seed: int = 0,
) -> dict:
    """Trains a linear classifier on cached features by a protocol's rule; held-out features choose the rate.

    "linear-cached": softmax regression on standardised features, SGD momentum 0.9, no weight decay, weights N(0, 0.01),
    biases 0, cosine to 0 per step; the winner is refitted on all training images.
    "dino-linear": DINO's: the same on features as they are, cosine per epoch, no refit; last and best epoch.
    "mae-linear": MAE's: batch normalisation without affine parameters, LARS, warm-up; last and best epoch.

    Args:
        train_features, test_features: (N, D) and (M, D) float.
        train_labels, test_labels: (N,) and (M,) int64 >= 0, any values.
        epochs, batch_size, base_lrs, held_out: None takes the protocol's. Rates are per 256 images; those used are
            scaled by batch_size / 256. held_out is the share of each class that chooses the rate, in (0, 1).
        seed: of the split, the initial weights and the order.

    Returns:
        "top1" and "top5" in percent, "correct" (M,) bool, the chosen "lr", and the constants that decide the numbers.
        With one rate there is nothing to choose and, but for "linear-cached", nothing is held out.

    Examples:
        >>> features, labels = torch.eye(2).repeat(20, 1), torch.arange(2).repeat(20)
        >>> a2mim.linear_probe(features, labels, features, labels, epochs=5)["top1"]
        100.0
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} is unknown: choose one of {', '.join(PROTOCOLS)}.")
    given: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "held_out": held_out, "seed": seed}
    given |= {"base_lrs": None if base_lrs is None else [float(lr) for lr in base_lrs]}
    c = read_protocol(protocol, {key: value for key, value in given.items() if value is not None}).constants
    refuse_below_one(epochs=c["epochs"], batch_size=c["batch_size"])
    check_features(train_features, train_labels, test_features, test_labels)
    sets = (train_features, train_labels, test_features, test_labels)
    found = _refitted(*sets, c) if protocol == "linear-cached" else _as_published(*sets, protocol, c)
    constants = {key: c[key] for key in ("epochs", "seed")}
    sizes = {"n_train": len(train_features), "n_test": len(test_features)}
    return Record({"protocol": protocol, **found, **constants, **sizes})


def _refitted(train_features, train_labels, test_features, test_labels, c: dict) -> dict:
    """Of equally accurate rates the one with the lower held-out loss wins."""
    epochs, seed = c["epochs"], c["seed"]
    classes, targets = torch.unique(train_labels.to(train_features.device), return_inverse=True)
    features, test_features = standardize(train_features.float(), test_features.float())
    batch_size = min(c["batch_size"], len(features))
    lrs = [lr * batch_size / 256 for lr in c["base_lrs"]]
    lr, validation, note = choose_lr(features, targets, lrs, epochs, batch_size, c["held_out"], seed)
    final = fit(features, targets, [lr], epochs, batch_size, len(classes), seed)
    rank = final.ranks(test_features, class_positions(classes, test_labels.to(classes.device)))[:, 0]
    result = {
        "top1": 100 * (rank == 0).double().mean().item(),
        "top5": 100 * (rank < 5).double().mean().item(),
        "lr": lr,
        "lrs": lrs,
        "held_out_top1": validation,
        "batch_size": batch_size,
        "standardized": True,
        "n_classes": len(classes),
        "correct": rank == 0,
    }
    return result | ({"note": note} if note else {})


def _as_published(train_features, train_labels, test_features, test_labels, protocol: str, c: dict) -> dict:
    """One stack of heads on the features as they are; the rate is not reduced for a pass's last, short batch."""
    classes, targets = torch.unique(train_labels, return_inverse=True)
    images, test = Labelled({"features": train_features.float()}, train_labels), Labelled({}, test_labels)
    test.parts["features"] = test_features.float()
    lrs, batch_size = list(c["base_lrs"]), min(c["batch_size"], len(targets))
    held = hold_out(train_labels, c["held_out"], c["seed"]) if len(lrs) > 1 else torch.arange(0)
    kept = torch.ones(len(targets), dtype=torch.bool)
    kept[held] = False
    rows = torch.nonzero(kept)[:, 0]
    judged = held if len(held) else rows
    settings = (lrs, train_features.shape[1], len(classes))
    device = train_features.device
    heads: LinearHeads | LarsHeads
    if protocol == "dino-linear":
        heads = LinearHeads(*settings, c["seed"], device)
    else:
        heads = LarsHeads(*settings, c, c["seed"], device)
    generator = torch.Generator().manual_seed(c["seed"] + 1)

    def batches():
        for some in rows[torch.randperm(len(rows), generator=generator)].split(batch_size):
            yield TrainingBatch({"features": images.parts["features"][some]}, targets[some], batch_size)

    steps = -(-len(rows) // batch_size)
    found = probe(
        [Stack("features", ("features",), heads, lrs)],
        TrainingPass(batches, batch_size, steps),
        classes,
        Labelled({"features": images.parts["features"][judged]}, train_labels[judged]),
        test,
        c["epochs"],
        schedule(c),
        steps,
        per_iteration=protocol == "mae-linear",
    )
    del found["head"], found["n_heads"]
    if not len(held):
        found["held_out_top1"] = None  # the held-out images were training images too
    return found | {"base_lrs": lrs, "standardized": False, "n_held_out": len(held), "n_classes": len(classes)}


def schedule(constants: dict):
    """Epochs done -> share of the peak rate: linear warm-up where there is one, then the cosine to 0."""
    epochs, warmup = constants["epochs"], constants.get("warmup_epochs", 0)

    def factor(epoch: float) -> float:
        return epoch / warmup if epoch < warmup else cosine((epoch - warmup) / max(epochs - warmup, 1e-9))

    return factor


def epochs_for(constants: dict, steps: int) -> int:
    """Epochs of `steps` steps each: the protocol's, or as many more as its `least_steps` needs, where it has one."""
    return max(constants["epochs"], -(-constants.get("least_steps", 1) // max(1, steps)))


def choose_lr(features, targets, lrs, epochs, batch_size, held_out, seed) -> tuple[float, float | None, str]:
    """(rate, its held-out accuracy in percent, a note): features (N, D) standardised, targets (N,) in 0..C-1."""
    n_classes = int(targets.max()) + 1
    chosen = hold_out(targets, held_out, seed)
    if len(chosen) == 0:  # one image per class: nothing can be held out
        heads = fit(features, targets, lrs, epochs, batch_size, n_classes, seed)
        note = "no class has two training images, so the rate with the lowest training loss was taken"
        return lrs[heads.losses(features, targets).argmin().item()], None, note
    kept = torch.ones(len(targets), dtype=torch.bool, device=targets.device)
    kept[chosen] = False
    heads = fit(features[kept], targets[kept], lrs, epochs, batch_size, n_classes, seed)
    best, accuracy = best_head(heads, features[chosen], targets[chosen])
    note = ""
    if len(lrs) > 1 and best in (0, len(lrs) - 1):
        note = "the chosen rate is at the end of the grid"
    return lrs[best], accuracy, note


def best_head(heads: LinearHeads, features: Tensor, targets: Tensor) -> tuple[int, float]:
    """Index of the most accurate head and its accuracy in percent; ties go to the lower loss."""
    accuracy = (heads.ranks(features, targets) == 0).double().mean(dim=0)
    losses = heads.losses(features, targets)
    losses[accuracy < accuracy.max()] = torch.inf
    return int(losses.argmin()), 100 * accuracy.max().item()


def fit(features, targets, lrs, epochs: int, batch_size: int, n_classes: int, seed: int) -> LinearHeads:
    """Heads after `epochs` shuffled passes over features (N, D), targets (N,); a pass's last batch may be short."""
    heads = LinearHeads(lrs, features.shape[1], n_classes, seed, features.device)
    generator = torch.Generator().manual_seed(seed + 1)
    total = epochs * math.ceil(len(features) / batch_size)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for rows in order.split(batch_size):
            heads.step(features[rows], targets[rows], cosine(step / total))
            step += 1
    return heads


def cosine(progress: float) -> float:
    """1 at progress 0, 0 at progress 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def standardize(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both by the training set's mean and deviation; a dimension that is constant in training becomes 0 in both."""
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0)
    alive = std > 1e-6 * mean.abs()  # less is the rounding of a constant
    scale = torch.where(alive, 1 / torch.where(alive, std, 1), 0)
    return (train - mean) * scale, (test.to(train.device) - mean) * scale


def hold_out(labels: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Indices, ascending, of a share of each class; at least one of a class with two or more, none of a class with one.

    Args:
        labels: (N,) int64.
        fraction: in (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"held_out={fraction} was given: the held-out share must lie between 0 and 1.")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator).to(labels.device)
    order = shuffled[labels[shuffled].argsort(stable=True)]  # classes one after another, shuffled inside
    _, counts = torch.unique_consecutive(labels[order], return_counts=True)
    wanted = (counts * fraction).round().long().clamp(min=1)
    wanted = torch.minimum(wanted, counts - 1)
    place = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[place < wanted.repeat_interleave(counts)].sort().values

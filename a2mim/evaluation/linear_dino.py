"""DINO's linear protocol: fresh augmented views each epoch, a frozen encoder, several learning rates in one pass."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from a2mim.evaluation.features import check_features, class_positions, frozen, refuse_below_one, run_frozen
from a2mim.evaluation.heads import LinearHeads
from a2mim.evaluation.linear import cosine
from a2mim.evaluation.probe import Labelled, Stack, TrainingBatch, probe
from a2mim.evaluation.taps import dino_parts, tap
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize

# DINO's default is the first; its published ResNet-50 log used about 0.3
BASE_LRS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)


def linear_probe_dino(
    model: nn.Module,
    train_loader: Iterable,
    train_labels,
    held_out_loader: Iterable,
    test_loader: Iterable,
    epochs: int = 100,
    base_lrs=BASE_LRS,
    n_last_blocks: int | None = None,
    seed: int = 0,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
) -> dict:
    """One linear classifier a rate, all fed by the same forward pass; the rate is chosen on held-out training images.

    SGD momentum 0.9, no weight decay, weights N(0, 0.01), biases 0, cosine to 0 per epoch.

    Args:
        model: a timm model; stays frozen, in evaluation mode, and is left as found.
        train_loader: one epoch each time it is iterated, freshly augmented: dicts of "images", "labels", "ids". It
            hands out the whole training set: images that `held_out_loader` shows are skipped by their id.
        train_labels: (N,) int64 of the training set: says which classes there are.
        held_out_loader: test-like views of the training images that choose the rate (see `hold_out`), same ids.
        test_loader: the test set, looked at only to report.
        base_lrs: per 256 images; a step uses its batch's size / 256 of it.
        n_last_blocks: see `dino_features`.

    Returns:
        "top1", "top5": of the last epoch, in percent, at the chosen "base_lr"; "best_top1", "best_epoch" (from 1): the
        best epoch on the test set at that rate, as the original reports, which flatters; "correct" (M,) bool of the
        last epoch; and the constants that decide the numbers.

    Source: https://github.com/facebookresearch/dino, eval_linear.py; differs in sweeping and choosing the rate.
    """
    refuse_below_one(epochs=epochs)
    extract, description = dino_features(model, n_last_blocks)
    held_ids: list[Tensor] = []
    held = run_frozen(model, _noting_ids(held_out_loader, held_ids), extract, mean, std)
    test = run_frozen(model, test_loader, extract, mean, std)
    check_features(*held, *test)
    classes = torch.unique(torch.as_tensor(train_labels))
    heads = LinearHeads(base_lrs, test[0].shape[1], len(classes), seed, next(model.parameters()).device)
    result = probe(
        [Stack(description, ("features",), heads, list(base_lrs))],
        _Views(model, train_loader, extract, classes, torch.cat(held_ids), mean, std),
        classes,
        Labelled({"features": held[0]}, held[1]),
        Labelled({"features": test[0]}, test[1]),
        epochs=epochs,
        factor=lambda epoch: cosine(epoch / epochs),
    )
    return {
        "protocol": "dino-linear",
        **result,
        "base_lrs": list(base_lrs),
        "epochs": epochs,
        "features": description,
        "standardized": False,
        "seed": seed,
        "n_held_out": len(held[1]),
        "n_test": len(test[1]),
        "n_classes": len(classes),
    }


def dino_features(model: nn.Module, n_last_blocks: int | None = None) -> tuple[Callable[[Tensor], Tensor], str]:
    """(images (B, C, H, W) -> features (B, D), what they are), as DINO takes them, see `dino_parts`."""
    parts, description = dino_parts(model, n_last_blocks)
    run = tap(model, parts)
    return lambda images: torch.cat(list(run(images).values()), dim=1), description


def _noting_ids(loader: Iterable, ids: list[Tensor]) -> Iterator[dict]:
    """The loader's batches; their ids are appended to `ids`."""
    for batch in loader:
        ids.append(torch.as_tensor(batch["ids"]))
        yield batch


@dataclass(frozen=True)
class _Views:
    """The training images that are not held out, one epoch an iteration; a batch's size counts those held out too."""

    model: nn.Module
    loader: Iterable[dict]
    extract: Callable[[Tensor], Tensor]
    classes: Tensor
    held_ids: Tensor
    mean: Sequence[float]
    std: Sequence[float]

    def __iter__(self) -> Iterator[TrainingBatch]:
        device = next(self.model.parameters()).device
        with frozen(self.model):
            for batch in self.loader:
                kept = ~torch.isin(torch.as_tensor(batch["ids"]), self.held_ids)
                if kept.any():
                    images = normalize(batch["images"][kept].to(device), self.mean, self.std)
                    targets = class_positions(self.classes, batch["labels"][kept]).to(device)
                    yield TrainingBatch({"features": self.extract(images).float()}, targets, len(kept))

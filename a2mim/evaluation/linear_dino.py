"""DINO's linear protocol: fresh augmented views each epoch, a frozen encoder, several learning rates in one pass."""

from collections.abc import Callable, Iterable, Iterator

import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from a2mim.evaluation.features import (
    check_features,
    class_positions,
    frozen,
    pooling_of,
    refuse_below_one,
    run_frozen,
)
from a2mim.evaluation.heads import LinearHeads
from a2mim.evaluation.linear import best_head, cosine
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize

# DINO's default is the first; its published ResNet-50 log used about 0.3
BASE_LRS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
SMALL_WIDTH = 384  # of ViT-S: up to here DINO takes four class tokens, above it one and the mean patch token


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
    held_features, held_labels = run_frozen(model, _noting_ids(held_out_loader, held_ids), extract, mean, std)
    test_features, test_labels = run_frozen(model, test_loader, extract, mean, std)
    check_features(held_features, held_labels, test_features, test_labels)
    classes = torch.unique(torch.as_tensor(train_labels))
    heads = LinearHeads(base_lrs, test_features.shape[1], len(classes), seed, next(model.parameters()).device)
    test_targets, batch_size, history = class_positions(classes, test_labels), 0, []
    for epoch in tqdm(range(epochs), desc="linear probe", leave=False, unit="epoch"):
        for features, targets, size in _views(model, train_loader, extract, classes, torch.cat(held_ids), mean, std):
            heads.step(features, targets, cosine(epoch / epochs) * size / 256)
            batch_size = max(batch_size, size)
        history.append(heads.ranks(test_features, test_targets))
    chosen, held_accuracy = best_head(heads, held_features, class_positions(classes, held_labels))
    rank = torch.stack([ranks[:, chosen] for ranks in history])
    top1 = 100 * (rank == 0).double().mean(dim=1)
    return {
        "protocol": "dino-linear",
        "top1": top1[-1].item(),
        "top5": 100 * (rank[-1] < 5).double().mean().item(),
        "best_top1": top1.max().item(),
        "best_epoch": int(top1.argmax()) + 1,
        "base_lr": base_lrs[chosen],
        "lr": base_lrs[chosen] * batch_size / 256,
        "base_lrs": list(base_lrs),
        "held_out_top1": held_accuracy,
        "epochs": epochs,
        "batch_size": batch_size,
        "features": description,
        "standardized": False,
        "seed": seed,
        "n_held_out": len(held_labels),
        "n_test": len(test_labels),
        "n_classes": len(classes),
        "correct": rank[-1] == 0,
    }


def dino_features(model: nn.Module, n_last_blocks: int | None = None) -> tuple[Callable[[Tensor], Tensor], str]:
    """(images (B, C, H, W) -> features (B, D), what they are), as DINO takes them.

    A plain ViT gives the class tokens of its last blocks, each after the final norm: four up to width 384; above it the
    last one beside the mean of its patch tokens. Everything else (XCiT, CNNs) gives timm's pooled output.

    Args:
        n_last_blocks: overrides the number of blocks of a plain ViT; not for other models.
    """
    late_class_token = hasattr(model, "cls_attn_blocks")  # XCiT, CaiT: their blocks never see it
    if getattr(model, "cls_token", None) is None or not hasattr(model, "blocks") or late_class_token:
        if n_last_blocks is not None:
            raise ValueError(f"n_last_blocks={n_last_blocks} means nothing for {type(model).__name__}: leave it out.")
        return pooling_of(model, "default"), "pooled output"
    small = model.num_features <= SMALL_WIDTH
    blocks = n_last_blocks if n_last_blocks is not None else (min(4, len(model.blocks)) if small else 1)
    if not 1 <= blocks <= len(model.blocks):
        raise ValueError(f"n_last_blocks={blocks} was given: the model has {len(model.blocks)} blocks.")
    with_mean = n_last_blocks is None and not small

    def extract(images: Tensor) -> Tensor:
        taken = model.forward_intermediates(
            images, indices=blocks, norm=True, intermediates_only=True, return_prefix_tokens=True, output_fmt="NLC"
        )
        class_tokens = torch.stack([prefix[:, 0] for _, prefix in taken])
        features = rearrange(class_tokens, "l b d -> b (l d)")
        return torch.cat([features, taken[-1][0].mean(dim=1)], dim=1) if with_mean else features

    description = "class token of the last block" if blocks == 1 else f"class tokens of the last {blocks} blocks"
    return extract, description + (" and the mean of its patch tokens" if with_mean else "")


def _noting_ids(loader: Iterable, ids: list[Tensor]) -> Iterator[dict]:
    """The loader's batches; their ids are appended to `ids`."""
    for batch in loader:
        ids.append(torch.as_tensor(batch["ids"]))
        yield batch


def _views(
    model, loader, extract, classes: Tensor, held_ids: Tensor, mean, std
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """One epoch of (features (b, D), targets (b,), B): b of the B images of a batch are not held out."""
    device = next(model.parameters()).device
    with frozen(model):
        for batch in loader:
            kept = ~torch.isin(torch.as_tensor(batch["ids"]), held_ids)
            if kept.any():
                features = extract(normalize(batch["images"][kept].to(device), mean, std)).float()
                yield features, class_positions(classes, batch["labels"][kept]).to(device), len(kept)

"""Frozen features of a labelled set: one pass, in evaluation mode; the modes of the model are restored afterwards."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor, nn

from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from a2mim.text import ProgressBar
from a2mim.wiring.model_type import TimmModel

POOLINGS = ("default", "cls", "avg")
_NUMBERS = 2**26  # rows checked at once: a set on disk may be larger than memory


def extract_features(
    model: nn.Module, loader: Iterable, pooling: str = "default", mean=IMAGENET_MEAN, std=IMAGENET_STD
) -> tuple[Tensor, Tensor]:
    """Features and labels of every image, in the loader's order: (N, D) float32 and (N,) int64, on the CPU.

    Args:
        model: a timm model, on the device where the pass shall run; its modes are restored afterwards.
        loader: batches that are dicts with "images" and "labels", or (images, labels) pairs. Images are (B, C, H, W):
            uint8 is normalised here, float is taken as it is.
        pooling: "default" is what timm hands to a classifier; "cls" the class token; "avg" the mean over patch tokens
            or over the last feature map.
        mean, std: per channel, in units of the 0..1 range.

    Raises:
        ValueError: unknown pooling, no class token to take, or a loader without batches.
    """
    pool = pooling_of(model, pooling)
    return run_frozen(model, loader, pool, mean, std)


def run_frozen(
    model: nn.Module, loader: Iterable, pool: Callable[[Tensor], Tensor], mean, std
) -> tuple[Tensor, Tensor]:
    """(N, D) float32 and (N,) int64 on the CPU: `pool` of every normalised batch, without gradients."""
    device = next(model.parameters()).device
    features, labels = [], []
    with frozen(model):
        for batch in ProgressBar(loader, desc="features", leave=False, unit="batch"):
            images, targets = images_and_labels(batch)
            features.append(pool(normalize(images.to(device, non_blocking=True), mean, std)).float().cpu())
            labels.append(torch.as_tensor(targets, dtype=torch.int64).cpu())
    if not features:
        raise ValueError("the loader handed out no batch: give a set with at least one image.")
    return torch.cat(features), torch.cat(labels)


def images_and_labels(batch) -> tuple[Tensor, Tensor]:
    """(images, labels) of a batch, which is a dict or a pair."""
    if isinstance(batch, Mapping):
        return batch["images"], batch["labels"]
    return batch[0], batch[1]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode comes back, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def pooling_of(model: TimmModel, pooling: str) -> Callable[[Tensor], Tensor]:
    """The function from normalised images (B, C, H, W) to features (B, D)."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r} is unknown: choose one of {', '.join(POOLINGS)}.")
    if pooling == "cls" and getattr(model, "cls_token", None) is None:
        raise ValueError(f"{type(model).__name__} has no class token: choose pooling='default' or pooling='avg'.")
    if pooling == "default":
        return lambda images: model.forward_head(model.forward_features(images), pre_logits=True)
    if pooling == "cls":
        return lambda images: model.forward_features(images)[:, 0]
    return lambda images: average_tokens(model, model.forward_features(images))


def pooling_name(model: nn.Module, pooling: str) -> str:
    """timm's word for what `pooling_of` does with this model: "token", "avg", "map", …, and "avg, then norm" where
    timm norms what it has pooled, as "avg" that is asked for does not.
    """
    if pooling != "default":
        return {"cls": "token"}.get(pooling, pooling)
    for holder in (model, getattr(model, "head", None)):
        found = getattr(holder, "global_pool", None)
        found = getattr(found, "pool_type", found)
        if isinstance(found, str):
            return (found or "none") + (", then norm" if _norms_after_pooling(model) else "")
    return "as timm's forward_head"


def _norms_after_pooling(model: nn.Module) -> bool:
    norms = (getattr(model, "fc_norm", None), getattr(getattr(model, "head", None), "norm", None))
    return any(isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity) for norm in norms)


def unreadable_of(*loaders) -> dict[str, int]:
    """{reason: count} of the images that loaders could not read in their last pass."""
    total: Counter[str] = Counter()
    for loader in loaders:
        faults = getattr(loader, "faults", {})
        total.update(getattr(faults, "unreadable", faults))
    return dict(total)


def refuse_below_one(**constants) -> None:
    """Raises ValueError for a count, or a pair of them, that is not at least 1, None excepted."""
    for name, value in constants.items():
        if value is not None and (min(value) if isinstance(value, tuple | list) else value) < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def average_tokens(model: nn.Module, features: Tensor) -> Tensor:
    """(B, N, D) tokens, (B, D, h, w) or (B, h, w, D) -> (B, D); class and register tokens are left out."""
    if features.ndim == 3:
        # XCiT adds its class token late and does not count it as a prefix token
        prefix = getattr(model, "num_prefix_tokens", int(getattr(model, "cls_token", None) is not None))
        return features[:, prefix:].mean(dim=1)
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        features = rearrange(features, "b h w d -> b d h w")
    return features.mean(dim=(2, 3))


def check_features(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> None:
    """Refuses features that no protocol can judge, in one sentence.

    Raises:
        ValueError: shapes that do not belong together, an empty set, a missing label (negative), features that are not
            finite, or training features that are all the same.
    """
    for split, features, labels in (("training", train_features, train_labels), ("test", test_features, test_labels)):
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                f"{split} features {tuple(features.shape)} and labels {tuple(labels.shape)} do not belong together: "
                "give (N, D) and (N,)."
            )
        if len(features) == 0:
            raise ValueError(f"the {split} set is empty: give at least one image.")
        if (labels < 0).any():
            missing = int((labels < 0).sum())
            raise ValueError(f"{missing} of {len(labels)} {split} images have no label: give a labelled set.")
        bad = sum(int((~torch.isfinite(block)).any(dim=1).sum()) for block in _blocks(features))
        if bad:
            raise ValueError(
                f"the features of {bad} of {len(features)} {split} images are not finite: the encoder has diverged."
            )
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"training features have {train_features.shape[1]} dimensions and test features {test_features.shape[1]}: "
            "take both from one encoder with one pooling."
        )
    if len(train_features) > 1 and _are_constant(train_features):
        raise ValueError(
            f"all {len(train_features)} training images have the same features: the encoder has collapsed "
            "or its weights were not loaded."
        )


def _are_constant(features: Tensor) -> bool:
    first = features[0]
    return all((block - first).abs().max() <= 1e-6 * block.abs().max() for block in _blocks(features))


def _blocks(features: Tensor) -> tuple[Tensor, ...]:
    return features.split(max(1, _NUMBERS // max(1, features.shape[1])))


def class_positions(classes: Tensor, labels: Tensor) -> Tensor:
    """(M,) position of each label in the sorted `classes`, -1 where it is not among them."""
    position = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    return torch.where(classes[position] == labels, position, -1)

"""A recipe for any network, by rule: the architecture decides on method and site, the number of images on the schedule.

Three of the shipped recipes are the models: ResNet's, ConvNeXt's and XCiT's. The result is a guess that no paper has
tried, and the recipe says so in its first lines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from a2mim.batchnorm import has_batchnorm
from a2mim.encoder import MaskedEncoder
from a2mim.engine.recipes import as_recipe

IMAGENET = 1_281_167  # images; the rows' 300 epochs are meant for so many
MOST_EPOCHS, LAPTOP_STEPS = 1600, 400
STEPS = 30  # at least so many an epoch, where the batch allows it
LAPTOP_SIZES = (64, 96, 128)  # pixels; the first that the network takes
_ATTENTION = {"qkv", "q", "kv", "q_proj", "qkv_proj", "to_qkv", "query", "Wqkv", "in_proj"}  # names of its projections


@dataclass(frozen=True)
class Kind:
    """What the rule has found out about a network.

    Args:
        name, img_size: of the network.
        site: the module that takes the mask token.
        strides: pixels per cell of the site's maps and of the decoded maps.
        family: "transformer" (one stride throughout), "stages" (attention, several strides) or "cnn".
        batchnorm: whether its statistics depend on the batch.
    """

    name: str
    img_size: tuple[int, int]
    site: str | tuple[str, ...]
    strides: tuple[float, ...]
    family: str
    batchnorm: bool


def recipe_for(name: str, images: int | None = None) -> dict[str, Any]:
    """The settings of a recipe that pre-trains a network, as `a2mim.pretrain` takes them.

    Args:
        name: any name of timm, or the dotted path of a network of your own.
        images: how many there are to train on; None: not known, or very many.

    Raises:
        ValueError: no such network, or one that cannot be wrapped; in one sentence.

    Examples:
        >>> recipe = a2mim.recipe_for("resnet10t", images=5000)
        >>> recipe["model"]["encoder"]["site"], recipe["global_batch_size"]
        ('layer3', 128)
    """
    kind = look_at(name)
    cell = cell_for(kind.img_size, kind.strides, 32)
    batch = batch_for(images, 2048)
    epochs = min(MOST_EPOCHS, round(300 * math.sqrt(max(1.0, IMAGENET / (images or IMAGENET)))))
    cnn = kind.family == "cnn"
    site = kind.site if isinstance(kind.site, str) else list(kind.site)
    height, width = kind.img_size
    recipe: dict[str, Any] = {
        "model": {
            "encoder": {"name": name, "site": site, "token": "scaled" if cnn else "add"},
            "masking": {"type": "BlockMask", "mask_patch_size": cell, "mask_ratio": 0.6},
            "fill": "mean",
            "decoder": "linear",
            "target": "pixels",
            "losses": losses_for(kind),
        },
        "data": {"img_size": height if height == width else (height, width), "scale": (0.8 if cnn else 0.67, 1.0)},
        "global_batch_size": batch,
        "optimizer": {"type": "adamw", "base_lr": (1.5e-4 if cnn else 1e-4) * max(1.0, 256 / batch)},
        "schedule": {"epochs": epochs, "warmup_epochs": max(1, round(epochs / 30)), "min_lr": 1e-5},
        "checkpoint": {"every_epochs": max(1, epochs // 100)},
    }
    if cnn:
        recipe["optimizer"]["token_lr_scale"] = 0.1
    else:
        recipe["clip_grad"] = 5.0
    if kind.batchnorm:
        recipe["sync_batchnorm"] = True
    return recipe | {"laptop": laptop_for(kind, images)}


def text_of(recipe: dict[str, Any], images: int | None) -> str:
    """The recipe as a file that can be kept and edited."""
    encoder, epochs = recipe["model"]["encoder"], recipe["schedule"]["epochs"]
    many = "an unknown number of images" if images is None else f"{images:,} images"
    method = "a scaled token and a focal loss" if encoder["token"] == "scaled" else "an added token"
    words = (
        f"A²MIM, {encoder['name']}, by rule for {many}.",
        "",
        f"Method: {method}, as in the shipped recipes of its kind. Site of the mask token: {encoder['site']}.",
        f"Fewer images are shown more often: {epochs} epochs of {recipe['global_batch_size']} images a step. No paper",
        "has tried this row: `a2mim recipes` lists those that follow one.",
    )
    return as_recipe("\n".join(words), recipe)


def look_at(name: str, img_size: int | None = None) -> Kind:
    """Builds the network without memory for its weights, where it allows that, and looks at it."""
    try:
        with torch.device("meta"):
            encoder = MaskedEncoder(name, img_size=img_size)
    except (NotImplementedError, RuntimeError):  # some constructors compute with their weights
        encoder = MaskedEncoder(name, img_size=img_size)
    strides = tuple(float(side) for map_ in (*encoder.sites, *encoder.outputs) for side in map_.strides)
    attends, batchnorm = any(map(has_attention, encoder.model.modules())), has_batchnorm(encoder.model)
    one_stride = max(strides) == min(strides)
    isotropic = one_stride and (attends or not batchnorm)  # a transformer, or a mixer of tokens without attention
    family = "transformer" if isotropic else "stages" if attends else "cnn"
    return Kind(name, encoder.img_size, encoder.site, strides, family, batchnorm)


def has_attention(module: nn.Module) -> bool:
    """Whether a module compares all tokens with one another; attention to channels alone is none."""
    return isinstance(module, nn.MultiheadAttention) or not _ATTENTION.isdisjoint(dict(module.named_children()))


def losses_for(kind: Kind) -> list[dict[str, Any]]:
    """The losses of the shipped row of that kind."""
    if kind.family != "cnn":
        return [{"type": "MaskedL1"}, {"type": "FourierLoss", "weight": 0.1 if kind.family == "transformer" else 0.5}]
    fourier = [{"type": "FourierLoss", "weight": 0.5, "leak": 1e-3}] if kind.batchnorm else []
    return [{"type": "MaskedFocalL1"}, *fourier]


def cell_for(size: tuple[int, int], strides: tuple[float, ...], wanted: int) -> int:
    """Side of a mask cell in pixels: it divides the image, covers whole tokens if possible, and is near `wanted`."""
    fits = [side for side in range(1, min(size) + 1) if not size[0] % side and not size[1] % side]
    few = [side for side in fits if (size[0] // side) * (size[1] // side) >= 4] or fits
    site = min(strides)
    whole = [side for side in few if site.is_integer() and side % int(site) == 0]
    return min(whole or few, key=lambda side: (abs(side - wanted), side))


def batch_for(images: int | None, most: int) -> int:
    """A power of two, so that an epoch has `STEPS` steps where there are enough images; never more than there are."""
    if images is None:
        return most
    wanted = 2 ** int(math.log2(max(1, images / STEPS)))
    return max(1, min(most, max(16, wanted), images))


def laptop_for(kind: Kind, images: int | None) -> dict[str, Any]:
    """What changes at laptop scale: a small image, larger rates, and about `LAPTOP_STEPS` steps in all."""
    batch = batch_for(images, 32)
    epochs = 6 if images is None else max(1, min(200, round(LAPTOP_STEPS * batch / images)))
    size, cell = laptop_size(kind)
    return {
        "model.masking.mask_patch_size": cell,
        "model.masking.mask_ratio": 0.5,
        "model.losses": [{"type": "MaskedL1"}, {"type": "FourierLoss", "weight": 0.1}],
        "data.img_size": size,
        "global_batch_size": batch,
        "optimizer.base_lr": 3.2e-2 if kind.batchnorm and kind.family == "cnn" else 8e-3,
        "schedule.epochs": epochs,
        "schedule.warmup_epochs": round(epochs / 10, 1),
        "checkpoint.every_epochs": max(1, epochs // 10),
        "clip_grad": 1.0,
    }


def laptop_size(kind: Kind) -> tuple[int | tuple[int, int], int]:
    """(pixels, side of a mask cell): the smallest of `LAPTOP_SIZES` that keeps the token's site, else its own size."""
    stride = int(max(kind.strides)) if all(side.is_integer() for side in kind.strides) else 1
    for size in (round(side / stride) * stride for side in LAPTOP_SIZES):
        try:
            small = look_at(kind.name, size)
        except ValueError:
            continue
        if small.site == kind.site:
            return size, cell_for(small.img_size, small.strides, 16)
    height, width = kind.img_size
    return (height if height == width else (height, width)), cell_for(kind.img_size, kind.strides, 32)

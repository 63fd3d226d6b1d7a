"""An encoder with a classifier on it, under one loss: the model that fine-tuning trains.

Invariant: the timm model inside stays timm's, key for key, so that the exported model is a plain copy.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from a2mim.engine.finetune_settings import ClassLoss, Head
from a2mim.evaluation.features import frozen, pooling_name
from a2mim.evaluation.identity import hash_encoder
from a2mim.pixels import normalize
from a2mim.text import size_in_words
from a2mim.weights.loading import Source, build_reported
from a2mim.weights.sources import classifier_arguments
from a2mim.wiring.model_type import TimmModel
from a2mim.wiring.sites import unreached
from a2mim.wiring.timm_models import build_timm, takes


class Classifier(BaseModel):
    """A timm model with its classifier, and the loss it is trained by.

    Args:
        model: a timm model with num_classes > 0.
        loss: the recipe's `loss`: "cross-entropy", or "bce", whose `threshold` makes multi-hot targets of mixed ones.
        mean, std: normalisation of stored images, per channel, in units of 0..1.
    """

    def __init__(self, model: nn.Module, loss: ClassLoss, mean, std):
        super().__init__()
        self.model = model
        binary = loss.type == "bce"
        self.name = "loss_bce" if binary else "loss_ce"
        threshold = loss.threshold or None
        self.loss = BinaryCrossEntropy(0.0, target_threshold=threshold) if binary else SoftTargetCrossEntropy()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        return normalize(images, self.mean, self.std)

    def forward(self, images: Tensor, targets: Tensor | None = None, mode: str = "loss"):
        """images: (B, C, H, W) as stored, or normalised float; targets: (B, K) float, the share of each class.

        mode "loss" returns {"loss_…": scalar}, "predict" the logits (B, K) float32.
        """
        logits = self.model(self.normalize(images)).float()
        return logits if mode == "predict" else {self.name: self.loss(logits, targets)}


def build_classified(source: Source, num_classes: int, img_size: int | tuple[int, int], in_chans: int, chosen: Head):
    """(timm model with a new classifier, plain values that rebuild it, the report of what was loaded with its hash).

    Args:
        source: the encoder, read but not built.
        chosen: the recipe's `classifier`.

    Raises:
        ValueError: weights that do not fit, or a pooling or drop path that this architecture does not know.
    """
    # A rate that a file states is not the recipe's: what the recipe says is what runs.
    source = replace(source, model_args={k: v for k, v in source.model_args.items() if k != "drop_path_rate"})
    args = dict(source.model_args)
    if in_chans != args.get("in_chans", 3):
        args["in_chans"] = in_chans
    size = args.get("img_size", source.preprocessing and source.preprocessing.img_size)
    wanted = list(_pair(img_size))
    if size is None or list(_pair(size)) != wanted:
        args |= {"img_size": wanted} if takes(source.name, img_size=wanted) else {}
    changed = {key: value for key, value in args.items() if source.model_args.get(key) != value}
    if chosen.drop_path_rate:
        if not takes(source.name, drop_path_rate=chosen.drop_path_rate):
            raise ValueError(f"{source.name} has no stochastic depth; set classifier.drop_path_rate to 0")
        changed["drop_path_rate"] = chosen.drop_path_rate
    model, pixels, loaded = build_reported(source, chosen.allow_partial, **changed)
    described = {"name": source.name, **source.model_args, "img_size": list(pixels.img_size)}
    report = loaded.as_dict() | {"hash": hash_encoder(model, **described)}
    args |= put_classifier(model, num_classes, chosen)
    arguments = {"name": source.name, "model_args": args, "num_classes": num_classes, "frozen": []}
    arguments |= {"img_size": wanted, "in_chans": in_chans, "pooling": pooling_name(model, "default")}
    arguments["frozen"] = freeze_unreached(model, (in_chans, *wanted))
    return model, arguments, report


def rebuild_classified(arguments: dict, drop_path_rate: float) -> nn.Module:
    """The same model from the plain values of `build_classified`, with random weights.

    Args:
        arguments: as a checkpoint states them; they are checked as all that comes from files.
    """
    told = classifier_arguments(arguments, Path("the checkpoint"))
    model_args = {key: value for key, value in told["model_args"].items() if key != "drop_path_rate"}
    built = build_timm(
        told["name"], num_classes=told["num_classes"], drop_path_rate=drop_path_rate, model_args=model_args
    )
    for name in told["frozen"]:
        built.model.get_parameter(name).requires_grad_(False)
    return built.model


def at_size(model: TimmModel, size: int | tuple[int, int], in_chans: int) -> TimmModel:
    """The model where it takes images of that size, else a copy with its positions resampled.

    Raises:
        ValueError: it takes images of its own size alone.
    """
    images = torch.zeros(2, in_chans, *_pair(size), device=next(model.parameters()).device)
    problem = _problem(model, images)
    if problem is None:
        return model
    resized = copy.deepcopy(model)
    if hasattr(resized, "set_input_size"):
        try:
            resized.set_input_size(img_size=tuple(_pair(size)))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            problem = str(error)
        else:
            if (problem := _problem(resized, images)) is None:
                return resized
    raise ValueError(
        f"{type(model).__name__} cannot be judged on images of {size_in_words(size)} px ({problem.splitlines()[0]}):"
        " set data.test_size to data.img_size"
    )


def _problem(model: nn.Module, images: Tensor) -> str | None:
    """Why a forward pass fails, or None."""
    try:
        with frozen(model):
            model(images)
    except (AssertionError, RuntimeError, ValueError) as error:
        return str(error).strip() or type(error).__name__
    return None


def put_classifier(model: TimmModel, num_classes: int, chosen: Head) -> dict:
    """Gives the model its pooling and a new classifier; returns the create_model arguments that say so."""
    pooling = None if chosen.pooling == "default" else chosen.pooling
    args: dict[str, Any] = {"global_pool": pooling} if pooling else {}
    try:
        model.reset_classifier(num_classes, pooling)
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{type(model).__name__} does not take classifier.pooling={pooling!r} ({error or 'unknown to it'});"
            " set it to 'default'"
        ) from None
    if hasattr(model, "fc_norm"):  # a ViT's norm stands before or behind the pooling
        if chosen.norm == "after" and isinstance(model.fc_norm, nn.Identity):
            model.fc_norm, model.norm = model.norm, nn.Identity()
        args["fc_norm"] = not isinstance(model.fc_norm, nn.Identity)
    if chosen.head_init_std:
        heads = model.get_classifier()
        for head in heads if isinstance(heads, tuple) else (heads,):
            nn.init.trunc_normal_(head.weight, std=chosen.head_init_std)
            nn.init.zeros_(head.bias)
    return args


def freeze_unreached(model: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """Freezes the parameters that no logit depends on (XCiT's class attention under average pooling) and names them.

    They are found on a noisy copy: a layer that starts at zero hides what stands behind it.
    """
    probe = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    images = torch.randn(2, *shape, generator=generator)
    frozen = unreached(probe, [probe(images)])
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return frozen


def _pair(size) -> tuple:
    return (size, size) if isinstance(size, int) else tuple(size)

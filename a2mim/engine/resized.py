"""The encoder of a run at another image size: pre-trained on small images, judged and exported on larger ones."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from a2mim.data.crops import height_and_width
from a2mim.encoder import MaskedEncoder
from a2mim.engine.assembly import build_mim
from a2mim.engine.config import changed
from a2mim.engine.pretrain_settings import PretrainSettings
from a2mim.pixels import Preprocessing
from a2mim.text import size_in_words
from a2mim.weights.loading import build
from a2mim.weights.records import Source
from a2mim.wiring.networks import OwnNetwork


def judged_size(settings: PretrainSettings) -> tuple[int, int]:
    """(H, W) in pixels of the images that the encoder is judged on and exported for."""
    return height_and_width(settings.judge.img_size or settings.data.img_size)


def check_judged_size(settings: PretrainSettings) -> None:
    """ValueError where the row cannot be built at `judge.img_size`; asked before the training, not after it."""
    if judged_size(settings) != height_and_width(settings.data.img_size):
        hides = settings.model["encoder"].get("hide", "token") != "token"  # which is proven on numbers
        with nullcontext() if hides else torch.device("meta"):
            _build(settings)


def at_judged_size(encoder: MaskedEncoder, settings: PretrainSettings) -> MaskedEncoder:
    """The encoder itself where it has that size already, else a new one with its weights, on the CPU.

    timm resamples position embeddings, as it does for weights from a file; nothing else depends on the size.
    """
    if tuple(encoder.img_size) == judged_size(settings):
        return encoder
    resized = _build(settings)
    tensors = {key: value.detach().cpu() for key, value in encoder.model.state_dict().items()}
    if not isinstance(encoder.model, OwnNetwork):
        pixels = Preprocessing(settings.data.mean, settings.data.std, encoder.img_size)
        weights = Source(name=encoder.name, model_args=encoder.model_args, preprocessing=pixels, tensors=tensors)
        tensors = build(weights, **resized.model_args)[0].state_dict()
    resized.model.load_state_dict(tensors)
    for ours, theirs in zip((*resized.tokens, *resized.gammas), (*encoder.tokens, *encoder.gammas), strict=True):
        ours.data.copy_(theirs.data)
    return resized.train(encoder.training)


def _build(settings: PretrainSettings) -> MaskedEncoder:
    """A new encoder at the size of the judges; random numbers of the run are left alone."""
    size = judged_size(settings)
    try:
        with torch.random.fork_rng([]):
            return build_mim(changed(settings, {"data.img_size": size, "init_from": None})).encoder
    except ValueError as error:
        raise ValueError(f"judge.img_size={size_in_words(size)} does not suit this recipe: {error}") from error

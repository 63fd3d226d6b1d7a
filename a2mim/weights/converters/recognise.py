"""Recognises weights of other toolkits by their keys, and renames them to timm's.

Invariant: a tensor is renamed, re-ordered or left out by its name; nothing is guessed. Tensors that are left out are
counted.
"""

import argparse
import pickle
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from a2mim.weights.converters.forms import BICUBIC, NAMINGS, OWN, Naming

# keys under which files keep their tensors, in the order of preference: averaged weights first, as timm prefers them; a
# teacher is the average of its student
CONTAINERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "teacher", "model", "module"),
    *("target_encoder", "student", "network", "net", "encoder"),
)
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict")
# prefixes of the encoder's own names, outermost first
PREFIXES = (
    *("module.", "_orig_mod.", "teacher_backbone.", "student_backbone.", "teacher.", "student.", "base_encoder."),
    *("momentum_encoder.", "encoder_q.", "backbone.", "timm_model.", "vit.", "resnet.", "sparse_encoder.", "sp_cnn."),
    *("model.", "encoder."),
)
# toolkits whose files do not state their preprocessing, and that normalise images by ImageNet's mean and deviation
IMAGENET_MARKS = {"teacher", "student", "base_encoder", "momentum_encoder", "target_encoder", "model", "model_ema"}
# tensors that an encoder does not need: classifiers, poolers of text models, mask tokens, decoders, computed indices
MASKED = re.compile(r"(^|\.)(mask_token|mask_tokens\.\d+)$|^(module\.)?sparse_encoder\.")
INDEX = re.compile(r"(^|\.)(relative_position_index|attn_mask)$")
AUXILIARY = re.compile(
    r"(fc|head|heads|head_dist|cls_head|classifier|last_linear|pooler|projector|predictor|neck|decoder)\."
    r"|(mask_tokens?|mask_gamma|decoder_\w+|proj|pred|embeddings\.mask_token)(\.|$)"
    r"|.*(^|\.)(relative_position_index|attn_mask)$"
)


@dataclass
class Recognised:
    """The tensors of a file under timm's names, and how they were found."""

    form: Naming
    tensors: dict[str, Tensor]
    where: str  # containers and prefixes that were opened; "" for none
    pixels: dict | None  # the toolkit's mean, std and interpolation; None: timm's for the architecture
    left_out: Counter = field(default_factory=Counter)  # first part of the name -> number of tensors
    masked: bool = False  # the encoder had a mask token, so its BatchNorm has seen masked images


def read_weights(path: Path):
    """The content of a .safetensors file, or of a file that torch.save wrote. No code in it is run.

    Raises:
        ValueError: the file is damaged, or reading it would run code that it names.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # DINO's checkpoints contain the command's arguments, a namespace of plain values
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if not named:
            raise ValueError(f"{path} cannot be read: it is incomplete or not a file of weights.") from None
        raise ValueError(
            f"{path} holds more than tensors and plain values ({named[1]}), and reading that could run code: if you"
            " trust it, write only its state dictionary to another file with torch.save, and give that one."
        ) from None
    except Exception as error:  # readers report a broken file with any error
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}): it is incomplete or not a file of weights."
        ) from None


def recognise(content, own: dict[str, Tensor] | None = None) -> Recognised | None:
    """The tensors in a file's content under timm's names; None if they are not recognised.

    Args:
        content: from `read_weights`.
        own: state dictionary of the timm model that the weights should belong to; its keys and shapes are used. Without
            it, only the formats in the table are recognised.
    """
    own, opened = own or {}, []
    while isinstance(content, dict):
        inner = next((name for name in CONTAINERS if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        opened.append(f"{inner} (averaged weights)" if inner in AVERAGED else inner)
        content = content[inner]
    if not isinstance(content, dict):
        return None
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    masked = any(MASKED.search(key) for key in tensors)
    left_out: Counter = Counter()
    while (form := _form_of(tensors, own.keys())) is None:
        prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in tensors)), None)
        if prefix is None:
            return None
        left_out.update(key.partition(".")[0] for key in tensors if not key.startswith(prefix))
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        opened.append(prefix.rstrip("."))
    tensors = {rename(key, form): value for key, value in tensors.items()}
    if form.reshape:
        tensors = form.reshape(tensors)
    extra = [key for key in tensors if key not in own and AUXILIARY.match(key)]
    left_out.update(key.rpartition(".")[2] if INDEX.search(key) else key.partition(".")[0] for key in extra)
    tensors = {key: _as_shaped(value, own.get(key)) for key, value in tensors.items() if key not in extra}
    words = {word for step in opened for word in step.split(" ")}
    vit = "blocks.0.attn.qkv.weight" in tensors  # timm's mean for a ViT is 0.5 unless its tag has another
    imagenet = masked or words & {"teacher", "student"} or (vit and words & IMAGENET_MARKS)
    return Recognised(
        form, tensors, " / ".join(opened), form.pixels or (BICUBIC if imagenet else None), left_out, masked
    )


def rename(key: str, form: Naming) -> str:
    for pattern, replacement in form.rules:
        key = re.sub(pattern, replacement, key)
    return key


def _as_shaped(given: Tensor, own: Tensor | None) -> Tensor:
    """The tensor in the model's shape, if they differ by axes of length 1 (a 1x1 convolution is a linear layer)."""
    if own is None or given.shape == own.shape or given.squeeze().shape != own.squeeze().shape:
        return given
    return given.reshape(own.shape)


def _form_of(tensors: dict, own_keys) -> Naming | None:
    """The format of these keys, or None.

    A format fits if all of its marks are present. If at least half of the model's keys are present, they are timm's own
    names, unless a format that renames fits: the authors' Swin differs from timm's only in its merging layers.
    """
    marked = [f for f in NAMINGS if all(any(re.match(mark, key) for key in tensors) for mark in f.marks)]
    if own_keys and own_keys <= tensors.keys():
        return next((form for form in marked if not form.rules), OWN)
    renamed = [form for form in marked if form.rules]
    if renamed:
        return renamed[0]
    if own_keys and 2 * len(own_keys & tensors.keys()) >= len(own_keys):
        return marked[0] if marked else OWN
    return marked[0] if marked else None

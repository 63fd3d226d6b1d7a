"""What the shapes of weights say about the arguments that timm builds their model with, beyond its name."""

import math

import timm
import torch
from torch import Tensor, nn


def arguments_of(name: str, tensors: dict[str, Tensor], model_args: dict) -> dict:
    """`model_args` and what follows from the tensors: channels, image size, pooling, position embedding, LayerScale.

    Only what is there decides; whatever still differs from the model is for the loading to refuse.
    """
    arguments = dict(model_args)
    own = on_meta(name, **arguments).state_dict()
    if "fc_norm.weight" in tensors and "norm.weight" in own and "norm.weight" not in tensors:
        arguments["global_pool"] = "avg"  # timm's ViT then norms after pooling
    if "pos_embed" in tensors and "pos_embed" not in own and any("relative_position_bias_table" in key for key in own):
        arguments["use_abs_pos_emb"] = True  # BEiT with both, as SimMIM and A²MIM train it
    if "blocks.0.ls1.gamma" in tensors and "blocks.0.ls1.gamma" not in own:
        arguments["init_values"] = 1.0  # any number gives the parameter, the file its values
    model = _built(name, arguments, fallback=model_args)
    if (channels := _channels(model, tensors)) != 3:
        arguments.setdefault("in_chans", channels)
    if size := _image_size(model, tensors):
        arguments.setdefault("img_size", size)
    return arguments


def on_meta(name: str, **arguments) -> nn.Module:
    """The timm model without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **arguments)


def _built(name: str, arguments: dict, fallback: dict) -> nn.Module:
    try:
        return on_meta(name, **arguments)
    except TypeError:  # a family without such an argument: then the keys differ, and say so
        for key in set(arguments) - set(fallback):
            del arguments[key]
        return on_meta(name, **arguments)


def _channels(model: nn.Module, tensors: dict) -> int:
    """Of the images: the input width of the first convolution, 3 where it cannot be told."""
    first = model.pretrained_cfg.get("first_conv")
    first = first if isinstance(first, str) else (first or [""])[0]
    given = tensors.get(f"{first}.weight")
    own = model.state_dict().get(f"{first}.weight")
    if given is None or own is None or given.ndim != 4 or own.shape[1] != 3:
        return 3
    return given.shape[1]


def _image_size(model: nn.Module, tensors: dict) -> list[int] | None:
    """[H, W] where the position embedding has another, square, number of cells than the model's own."""
    given, own = tensors.get("pos_embed"), getattr(model, "pos_embed", None)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if given is None or not isinstance(own, Tensor) or patch is None or given.ndim != 3 or given.shape == own.shape:
        return None
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
    side = math.isqrt(max(given.shape[1] - prefix, 0))
    return [side * p for p in patch] if side and side * side == given.shape[1] - prefix else None

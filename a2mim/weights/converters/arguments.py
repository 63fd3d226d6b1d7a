"""Arguments of timm's constructor that follow from the shapes of weights."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from a2mim.wiring.model_type import TimmModel
from a2mim.wiring.timm_models import on_meta


def arguments_of(
    name: str, tensors: Mapping[str, Tensor], model_args: Mapping[str, Any], masked: bool = False
) -> dict[str, Any]:
    """`model_args`, and the arguments that follow from the tensors: channels, image size, pooling, class token,
    position embedding, LayerScale, and the place of ConvNeXt's last norm.

    Args:
        masked: the encoder was pre-trained with a mask token.

    Only tensors in the file decide. If the model still differs, loading refuses it.
    """
    arguments = dict(model_args)
    own = on_meta(name, **arguments).state_dict()
    arguments |= _pooling(own, tensors)
    if "pos_embed" in tensors and "pos_embed" not in own and any("relative_position_bias_table" in key for key in own):
        arguments["use_abs_pos_emb"] = True  # BEiT with both kinds, as SimMIM and A²MIM train it
    if "blocks.0.ls1.gamma" in tensors and "blocks.0.ls1.gamma" not in own:
        arguments["init_values"] = 1.0  # any number creates the parameter; the file has its values
    if "head.norm.weight" in own and ("norm_pre.weight" in tensors or (masked and "head.norm.weight" in tensors)):
        arguments["head_norm_first"] = True  # a ConvNeXt that was decoded after its norm, as in A²MIM
    model = _built(name, arguments, fallback=model_args)
    if (channels := _channels(model, tensors)) != 3:
        arguments.setdefault("in_chans", channels)
    if size := _image_size(model, tensors):
        arguments.setdefault("img_size", size)
    return arguments


def place_norm(tensors: dict[str, Tensor], own: Mapping[str, object]) -> dict[str, Tensor]:
    """ConvNeXt's last norm under the model's name for it.

    timm calls it `norm_pre` if it is before the pooling (head_norm_first=True), and `head.norm` if it is after the
    pooling. The weights are the same.
    """
    renamed = {}
    for old, new in (("head.norm.", "norm_pre."), ("norm_pre.", "head.norm.")):
        for part in ("weight", "bias"):
            if old + part in tensors and old + part not in own and new + part in own and new + part not in tensors:
                renamed[old + part] = new + part
    return {renamed.get(key, key): value for key, value in tensors.items()}


def _pooling(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The pooling of a ViT, from the norms and the class token in the file."""
    if "fc_norm.weight" in tensors and "norm.weight" in own and "norm.weight" not in tensors:
        return {"global_pool": "avg"}  # timm's ViT then norms after pooling
    tokenless = "cls_token" in own and "cls_token" not in tensors and "pos_embed" in tensors
    if tokenless and "norm.weight" in tensors:  # I-JEPA
        return {"class_token": False, "global_pool": "avg", "fc_norm": False}
    if "norm.weight" in tensors and "norm.weight" not in own and "fc_norm.weight" in own:
        return {"global_pool": "token"}  # timm's BEiT averages and norms afterwards
    return {}


def _built(name: str, arguments: dict[str, Any], fallback: Mapping[str, Any]) -> nn.Module:
    try:
        return on_meta(name, **arguments)
    except ValueError:  # the family lacks such an argument; the error then names the keys that differ
        for key in set(arguments) - set(fallback):
            del arguments[key]
        return on_meta(name, **arguments)


def _channels(model: TimmModel, tensors: Mapping[str, Tensor]) -> int:
    """Channels of the images: the input width of the first convolution, or 3 if it is unknown."""
    first = model.pretrained_cfg.get("first_conv")
    first = first if isinstance(first, str) else (first or [""])[0]
    given = tensors.get(f"{first}.weight")
    own = model.state_dict().get(f"{first}.weight")
    if given is None or own is None or given.ndim != 4 or own.shape[1] != 3:
        return 3
    return given.shape[1]


def _image_size(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[int] | None:
    """[H, W] if the position embedding has a square number of cells that is not the model's own; else None."""
    given, own = tensors.get("pos_embed"), getattr(model, "pos_embed", None)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if given is None or not isinstance(own, Tensor) or patch is None or given.ndim != 3 or given.shape == own.shape:
        return None
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
    side = math.isqrt(max(given.shape[1] - prefix, 0))
    return [side * p for p in patch] if side and side * side == given.shape[1] - prefix else None

"""Decoders made from a name or a config, to fit maps and a target."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from a2mim.decoders.conv_neck import ConvNeck
from a2mim.decoders.each_map import EachMap, reads_all_maps
from a2mim.decoders.fusion import FusedLinear
from a2mim.decoders.light import LightDecoder
from a2mim.decoders.linear import LinearDecoder
from a2mim.decoders.transformer import TransformerDecoder
from a2mim.registry import MODELS, find_part, lookup, takes

DECODERS: dict[str, type[nn.Module]] = {
    "linear": LinearDecoder,
    "conv_neck": ConvNeck,
    "fused_linear": FusedLinear,
    "light": LightDecoder,
    "transformer": TransformerDecoder,
}


def make_decoder(
    decoder: str | dict,
    channels: Sequence[int],
    strides: Sequence[float],
    out_channels: int,
    out_stride: int,
    mask_token: bool = False,
    target_cells: Sequence[int] | None = None,
) -> nn.Module:
    """A name of `DECODERS`, or a config, -> a module called as (maps, mask, prefix=None).

    A decoder of one map is made once for each map, see `EachMap`.

    Args:
        channels, strides, out_channels, out_stride, mask_token: see `a2mim.decoders`.
        target_cells: pixels, side of a cell of each of the target's scales; for decoders that ask for them.

    Raises:
        ValueError: a name or an argument is not known, or the shapes do not fit.
    """
    if not isinstance(decoder, str | dict):
        raise ValueError(
            f"a decoder is made to fit the maps, from a name ({', '.join(DECODERS)}) or a config such as"
            f" dict(type='LightDecoder'), not from a {type(decoder).__name__}"
        )
    config = {} if isinstance(decoder, str) else dict(decoder)
    kind = lookup(decoder, DECODERS, "decoder") if isinstance(decoder, str) else find_part(config.get("type"), MODELS)

    if kind is not None:
        check_kind(kind)

    def make(**extra: Any) -> nn.Module:
        twice = sorted(extra.keys() & config.keys())
        if twice:
            raise ValueError(
                f"{config.get('type')}: {' and '.join(twice)} cannot be chosen, they follow from the encoder's maps and"
                " the target; leave them out of the decoder's config"
            )
        return kind(**extra) if isinstance(decoder, str) else MODELS.build({**config, **extra})

    shapes: dict[str, Any] = {"channels": list(channels), "strides": list(strides)}
    if kind is None or not reads_all_maps(kind):
        return EachMap(make, **shapes, out_channels=out_channels, out_stride=out_stride, mask_token=mask_token)
    more: dict[str, Any] = {"mask_token": mask_token} if takes(kind, "mask_token") else {}
    more |= {"target_cells": target_cells} if takes(kind, "target_cells") else {}
    return make(**shapes, out_channels=out_channels, out_stride=out_stride, **more)


def check_kind(kind: Callable) -> None:
    """Raises ValueError for a class or function that cannot be a decoder, as it takes no channels."""
    known = inspect.signature(kind).parameters
    anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    if not anything and known.keys().isdisjoint(("channels", "in_channels")):
        raise ValueError(
            f"{getattr(kind, '__name__', kind)} is no decoder, which is made as Decoder(channels, strides,"
            " out_channels, out_stride) or Decoder(in_channels, stride, out_channels); give a name"
            f" ({', '.join(DECODERS)}) or a config such as dict(type='LightDecoder')"
        )

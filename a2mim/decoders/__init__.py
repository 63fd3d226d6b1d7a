"""From feature maps to the target's grid.

A decoder is built as Decoder(channels=[…], strides=[…], out_channels=C, out_stride=s) for maps (B, channels[i], h, w)
of strides[i] pixels a cell, and called as decoder(maps, mask, prefix=None) with the mask (B, rows, cols) bool, True =
hidden, and the encoder's class and register tokens (B, P, D) where it has any. It returns (B, C, H / s, W / s).

Where the encoder hides cells by leaving them out (`hide="drop"` or `"sparse"`), the maps are 0 there and the decoder
fills them with a mask token of its own: it is then built with mask_token=True, else with False. A decoder that is built
as Decoder(in_channels, stride, out_channels) reads one map and no mask; `EachMap` makes one for each map.
"""

from a2mim.decoders.conv_neck import ConvNeck
from a2mim.decoders.each_map import EachMap
from a2mim.decoders.fusion import FusedLinear, FuseMaps
from a2mim.decoders.light import LightDecoder
from a2mim.decoders.linear import LinearDecoder
from a2mim.decoders.making import DECODERS, make_decoder
from a2mim.decoders.scales import EachScale
from a2mim.decoders.transformer import TransformerDecoder

__all__ = [
    "DECODERS",
    "ConvNeck",
    "EachMap",
    "EachScale",
    "FuseMaps",
    "FusedLinear",
    "LightDecoder",
    "LinearDecoder",
    "TransformerDecoder",
    "make_decoder",
]

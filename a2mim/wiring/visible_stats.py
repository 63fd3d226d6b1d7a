"""Sums over visible tokens only, for architectures that summarise all tokens.

XCiT's cross-covariance, X-ViT's K'V and LinGlo's saliency average are such sums. Masking changes them for visible
tokens too, because more than half of the summed tokens are fill or mask token. With this option every token, hidden or
not, uses the summary of the visible ones.

Only the mask decides which tokens are hidden. It does so in every block: before the site of the mask token, where a
hidden token holds the fill, and behind it, where it holds the mask token. If cells and tokens do not align, a token is
weighted by the visible share of its pixels. If no token of an image shows a pixel, the sums run over all tokens.
Convolutions, BatchNorm and class layers do not change.

Invariant: parameters and state dictionary do not change, and without a mask every result is the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.models.xcit import XCABlock
from torch import Tensor, nn

from a2mim.backbones import linglo, xvit
from a2mim.wiring.sites import feature_modules


@dataclass(eq=False)
class VisibleShare:
    """Hooks that pass the visible share of each token to one attention module.

    Attributes:
        hidden: (grid, strides) -> (B, h, w), the hidden share of each cell, or None without a mask. It is a bound
            method, so that a deep copy of the encoder uses its own mask.
        grid: (h, w) of the tokens.
        strides: pixels per token, vertical and horizontal.
    """

    hidden: Callable[[tuple[int, int], tuple[float, float]], Tensor | None]
    grid: tuple[int, int]
    strides: tuple[float, float]

    def share(self) -> Tensor | None:
        """(B, N) float32 in [0, 1]; all ones for an image without a visible token."""
        hidden = self.hidden(self.grid, self.strides)
        if hidden is None:
            return None
        visible = 1 - hidden.flatten(1).float()
        return torch.where(visible.any(dim=1, keepdim=True), visible, torch.ones_like(visible))

    def scale_queries_and_keys(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        """Forward hook of XCA's `qkv`. It scales queries and keys, so that XCA's norms and sums over tokens cover only
        the visible ones; values do not change. The factor is a root, because each product holds two of them.
        """
        share = self.share()
        if share is None:
            return None
        width = output.shape[-1] // 3
        queries_keys, values = output.split([2 * width, width], dim=-1)
        return torch.cat([queries_keys * share.sqrt()[..., None].to(output.dtype), values], dim=-1)

    def pass_share(self, module: nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict] | None:
        """Forward pre-hook of our own attention modules, which take the share as an argument."""
        share = self.share()
        return None if share is None else (inputs, {**named, "visible": share})


def sum_over_visible(model: nn.Module, name: str, img_size: tuple[int, int], hidden: Callable) -> None:
    """Hooks every block of a timm model whose attention sums over tokens.

    Args:
        name: of the model, for the error.
        img_size: (H, W) in pixels.
        hidden: see VisibleShare.

    Raises:
        ValueError: the architecture has no such sums.
    """
    hooked = 0
    for stage, stride in feature_modules(model):
        grid = math.ceil(img_size[0] / stride), math.ceil(img_size[1] / stride)  # all three architectures round up
        visible = VisibleShare(hidden, grid, (stride, stride))
        for block in model.get_submodule(stage).modules():
            if isinstance(block, XCABlock):
                block.attn.qkv.register_forward_hook(visible.scale_queries_and_keys)
            elif isinstance(block, xvit.Block | linglo.Unit):
                block.attn.register_forward_pre_hook(visible.pass_share, with_kwargs=True)
            else:
                continue
            hooked += 1
    if not hooked:
        raise ValueError(
            f"visible_stats=True has no effect for {name}, whose layers do not sum over all tokens; leave it out (it is"
            " for XCiT, X-ViT and LinGlo)."
        )

"""The adapter between the contract of decoders and those that read one map and no mask."""

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from a2mim.decoders.tokens import fit_grid, insert_mask_token, make_token


def reads_all_maps(make: Callable) -> bool:
    """Whether a decoder class takes `channels` and `strides`, as the contract has it."""
    return {"channels", "strides"} <= set(inspect.signature(make).parameters)


class EachMap(nn.ModuleList):
    """One decoder for each map; their answers are averaged. Children are the decoders, by number.

    Args:
        make: called as make(in_channels=…, stride=…, out_channels=…); the result is called as decoder(map).
        channels, strides, out_channels, out_stride, mask_token: see `a2mim.decoders`.
    """

    def __init__(
        self,
        make: Callable,
        channels: list[int],
        strides: list[float],
        out_channels: int,
        out_stride: int = 1,
        mask_token: bool = False,
    ):
        self.ratios = [stride / out_stride for stride in strides]
        super().__init__(
            make(in_channels=width, stride=max(1, math.ceil(ratio)), out_channels=out_channels)
            for width, ratio in zip(channels, self.ratios, strict=True)
        )
        # no ParameterList: it would be one of the children that a list runs over
        self.token_names = [f"token_{i}" for i in range(len(channels))] if mask_token else []
        for name, width in zip(self.token_names, channels, strict=False):
            self.register_parameter(name, make_token(width))

    def forward(
        self, maps: list[Tensor], mask: Tensor, prefix: Tensor | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """maps: each (B, D, h, w); mask: (B, rows, cols) bool; grid: (h, w) of the target, by default as many cells as
        the first map covers. Returns (B, C, h, w).
        """
        if self.token_names:
            tokens = [self.get_parameter(name) for name in self.token_names]
            maps = [insert_mask_token(features, token, mask) for features, token in zip(maps, tokens, strict=True)]
        recons = [decoder(features) for decoder, features in zip(self, maps, strict=True)]
        if grid is None:
            grid = int(maps[0].shape[2] * self.ratios[0]), int(maps[0].shape[3] * self.ratios[0])
        recons = [fit_grid(recon, grid, ratio) for recon, ratio in zip(recons, self.ratios, strict=True)]
        return torch.stack(recons).mean(dim=0) if len(recons) > 1 else recons[0]

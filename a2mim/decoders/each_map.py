"""The adapter between the contract of decoders and those that read one map and no mask."""

import inspect
import math
from collections.abc import Callable, Iterable

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
        self.out_channels = out_channels
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
        if grid is None:
            grid = int(maps[0].shape[2] * self.ratios[0]), int(maps[0].shape[3] * self.ratios[0])
        recons = []
        for decoder, features, ratio in zip(self, maps, self.ratios, strict=True):
            recon = decoder(features)
            check_answer(decoder, recon, [features], [ratio], self.out_channels, grid)
            recons.append(fit_grid(recon, grid, ratio))
        return torch.stack(recons).mean(dim=0) if len(recons) > 1 else recons[0]

    def after_step(self, encoder: nn.Module, step: int, steps: int) -> None:
        """Lets the decoders act that have something to do; one that serves several maps acts once."""
        tell(self, encoder, step, steps)


def tell(parts: Iterable, encoder: nn.Module, step: int, steps: int) -> None:
    """after_step of each part that has one, once. step: 1..steps."""
    for part in {id(one): one for one in parts}.values():
        act = getattr(part, "after_step", None)
        if callable(act):
            act(encoder, step, steps)


def check_answer(
    decoder: nn.Module, recon: Tensor, maps: list[Tensor], ratios: list[float], channels: int, grid: tuple[int, int]
) -> None:
    """Raises ValueError for an answer of another shape than (B, channels, *grid), or than a map's own cells give.

    Args:
        ratios: target cells per feature cell of each map, along a side.
    """
    sides = [max(1, math.ceil(ratio)) for ratio in ratios]
    grids = [(one.shape[2] * side, one.shape[3] * side) for one, side in zip(maps, sides, strict=True)]
    answer = tuple(recon.shape) if isinstance(recon, Tensor) else type(recon).__name__
    if answer in [(len(maps[0]), channels, *one) for one in (grid, *grids)]:
        return
    told = " and ".join(str(tuple(one.shape)) for one in maps)
    raise ValueError(
        f"the decoder {type(decoder).__name__} answers {answer} for maps of {told};"
        f" {(len(maps[0]), channels, *grids[-1])} is expected"
    )

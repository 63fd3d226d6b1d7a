"""Several scales of a target, each predicted from a map of its own."""

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from a2mim.decoders.each_map import tell
from a2mim.decoders.making import make_decoder
from a2mim.decoders.tokens import fit_grid
from a2mim.registry import MODELS, is_whole, takes


@MODELS.register_module()
class EachScale(nn.Module):
    """Map i alone answers scale i of the target, through a LayerNorm and a decoder of its own.

    A target of several scales, such as `HOG(cells=[4, 8, 16, 32])`, has the channels of every scale behind each other
    on the grid of the finest. So early blocks can be made to predict fine cells, and late ones coarse cells. The class
    and register tokens of a map take part in its decoder.

    Args:
        channels, strides, out_channels, out_stride, mask_token: see `a2mim.decoders`. As many maps as scales.
        decoder: of each map: a name of `DECODERS`, or a config.
        target_cells: pixels, side of a cell of each of the target's scales; `MIM` fills them in.

    Raises:
        ValueError: maps, scales and channels do not go together.

    Source: LocalMIM, https://arxiv.org/abs/2303.05251.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[float],
        out_channels: int,
        out_stride: int = 1,
        mask_token: bool = True,
        decoder: str | dict = "linear",
        target_cells: list[int] | None = None,
    ):
        super().__init__()
        number = len(channels)
        if not isinstance(target_cells, list | tuple | type(None)) or not all(map(is_whole, target_cells or [])):
            raise ValueError(f"EachScale: target_cells={target_cells!r} must be a list of whole numbers of pixels")
        self.cells = list(target_cells or [])
        if len(self.cells) != number or out_channels % number:
            raise ValueError(
                f"EachScale: {number} maps do not go with a target of {out_channels} channels and scales of"
                f" {self.cells} px; give as many maps as the target has scales, such as HOG(cells=[4, 8, 16, 32]) has"
            )
        if any(cell % out_stride for cell in self.cells):
            raise ValueError(f"EachScale: target_cells={self.cells} must be multiples of the target's {out_stride} px")
        self.ratio = strides[0] / out_stride
        self.repeats = [cell // out_stride for cell in self.cells]
        self.norms = nn.ModuleList(LayerNorm2d(width, eps=1e-6) for width in channels)
        self.decoders = nn.ModuleList()
        self.shares: list[float] = []  # side of what a decoder answers, in cells of its scale
        for width, stride, cell in zip(channels, strides, self.cells, strict=True):
            side = int(stride) if stride < cell and cell % stride == 0 else cell
            self.shares.append(side / cell)
            self.decoders.append(make_decoder(decoder, [width], [stride], out_channels // number, side, mask_token))
        self.take_cells = [takes(one.forward, "hidden_cells") for one in self.decoders]

    def forward(
        self,
        maps: list[Tensor],
        mask: Tensor,
        prefix: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        hidden_cells: int | None = None,
        prefixes: list[Tensor | None] | None = None,
    ) -> Tensor:
        """maps: each (B, D, h, w); mask: (B, rows, cols) bool; prefix: (B, P, D) or None, of the last map; grid: (h, w)
        of the target, by default as many cells as the first map covers; hidden_cells: how many cells of `mask` are
        True, so that a decoder inside need not count them; prefixes: those of each map.

        Returns (B, out_channels, h, w).
        """
        if grid is None:
            grid = int(maps[0].shape[2] * self.ratio), int(maps[0].shape[3] * self.ratio)
        prefixes = prefixes or [*[None] * (len(maps) - 1), prefix]
        answers = []
        for i, (norm, decoder) in enumerate(zip(self.norms, self.decoders, strict=True)):
            known = {"hidden_cells": hidden_cells} if self.take_cells[i] else {}
            own = prefixes[i]
            tokens = None if own is None else norm(own.mT[..., None])[..., 0].mT
            answer = decoder([norm(maps[i])], mask, prefix=tokens, **known)
            times = self.repeats[i]
            answer = fit_grid(answer, (grid[0] // times, grid[1] // times), self.shares[i])
            answers.append(answer.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3))
        return torch.cat(answers, dim=1)

    def after_step(self, encoder: nn.Module, step: int, steps: int) -> None:
        """Lets the decoders act that have something to do."""
        tell(self.decoders, encoder, step, steps)

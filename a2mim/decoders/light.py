"""SparK's light decoder: from the coarsest map to pixels, with each finer map added on its way."""

import math

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from a2mim.decoders.tokens import insert_mask_token, make_token, shown_cells
from a2mim.registry import MODELS, check_whole


def norm_visible(norm: nn.Module, features: Tensor, mask: Tensor, hidden_cells: int | None = None) -> Tensor:
    """A norm over the visible cells alone, as (cells, D, 1, 1); hidden cells become 0.

    The norm is a module of its own, so that `a2mim.batchnorm.synchronise` replaces it like any other.

    Args:
        features: (B, D, h, w).
        mask: (B, rows, cols) bool.
        hidden_cells: how many cells of `mask` are True; None: they are counted, for which the host waits.
    """
    if features.is_meta:  # where nothing can be counted
        return norm(features)
    grid = features.shape[2], features.shape[3]
    known = hidden_cells if len(mask) == len(features) else None
    _, places = shown_cells(mask.expand(len(features), -1, -1), grid, known)
    cells = features.movedim(1, -1)
    normal = norm(cells.flatten(0, 2)[places][:, :, None, None])[:, :, 0, 0]
    full = normal.new_zeros(cells[..., 0].numel(), cells.shape[-1]).index_copy_(0, places, normal)
    return full.view(cells.shape).movedim(-1, 1)


class Densify(nn.Module):
    """Norm, mask token on hidden cells, and a convolution to the decoder's width, for one map.

    Args:
        channels: of the map. width: of the decoder where the map enters.
        coarsest: the map that the decoder starts from has a 1x1 convolution, or none where the width is the same; the
            others have 3x3.
        norm: "batch", over visible cells, or "layer", over the channels of each cell.
    """

    def __init__(self, channels: int, width: int, coarsest: bool, norm: str, mask_token: bool):
        super().__init__()
        self.by_cell = norm == "layer"
        self.norm = LayerNorm2d(channels) if self.by_cell else nn.BatchNorm2d(channels)
        self.token = make_token(channels) if mask_token else None
        kernel = 1 if coarsest else 3
        same = coarsest and channels == width
        self.proj = nn.Identity() if same else nn.Conv2d(channels, width, kernel, padding=kernel // 2)

    def forward(self, features: Tensor, mask: Tensor, hidden_cells: int | None = None) -> Tensor:
        """(B, channels, h, w) -> (B, width, h, w). hidden_cells: how many cells of `mask` are True, if known."""
        if self.token is None:
            mask, hidden_cells = torch.zeros_like(mask), 0
        normal = self.norm(features) if self.by_cell else norm_visible(self.norm, features, mask, hidden_cells)
        return self.proj(normal if self.token is None else insert_mask_token(normal, self.token, mask))


class UpBlock(nn.Sequential):
    """Twice the resolution, half the width."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.ConvTranspose2d(in_channels, in_channels, kernel_size=4, stride=2, padding=1),
            nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )


@MODELS.register_module()
class LightDecoder(nn.Module):
    """Doubles the resolution step by step, from the coarsest map to the target's grid.

    Before each step the map of that resolution is added, where there is one. Maps are sorted by stride; of several with
    one stride the last counts.

    Args:
        channels, strides, out_channels, out_stride, mask_token: see `a2mim.decoders`. Each stride must be the coarsest
            divided by a power of 2, and so must out_stride.
        width: of the first step; each further step has half of it.
        norm: of the maps, "batch" (ResNets; over visible cells) or "layer" (ConvNeXt; over channels).

    Source: SparK, https://arxiv.org/abs/2301.03580; width 768, mmpretrain's 512.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[float],
        out_channels: int = 3,
        out_stride: int = 1,
        mask_token: bool = True,
        width: int = 768,
        norm: str = "batch",
    ):
        super().__init__()
        if norm not in ("batch", "layer"):
            raise ValueError(f"LightDecoder: norm={norm!r} is neither 'batch' nor 'layer'")
        check_whole("LightDecoder", width=width)
        coarsest = max(strides)
        steps = math.log2(coarsest / out_stride)
        levels = [math.log2(coarsest / stride) for stride in strides]
        if any(level != int(level) for level in (steps, *levels)) or steps < max(levels):
            told = ", ".join(f"{stride:g}" for stride in strides)
            raise ValueError(
                f"LightDecoder doubles the resolution from the coarsest map on, so maps of {told} px a cell do not lead"
                f" to a target of {out_stride} px; strides and target must be the coarsest stride over powers of 2"
            )
        if width % 2 ** int(steps):
            raise ValueError(f"LightDecoder: width={width} must be a multiple of {2 ** int(steps)}, one half a step")
        self.read = {int(level): i for i, level in enumerate(levels)}  # level -> number of the map
        self.densify = nn.ModuleDict(
            {
                str(level): Densify(channels[i], width // 2**level, level == 0, norm, mask_token)
                for level, i in sorted(self.read.items())
            }
        )
        self.steps = nn.ModuleList(UpBlock(width // 2**i, width // 2 ** (i + 1)) for i in range(int(steps)))
        self.proj = nn.Conv2d(width // 2 ** int(steps), out_channels, kernel_size=1)
        self.apply(_initialise)

    def forward(
        self, maps: list[Tensor], mask: Tensor, prefix: Tensor | None = None, hidden_cells: int | None = None
    ) -> Tensor:
        """maps: each (B, D, h, w); mask: (B, rows, cols) bool. Returns (B, out_channels, H / s, W / s).

        hidden_cells: how many cells of `mask` are True, so that the host need not count them.
        """
        x = self.densify["0"](maps[self.read[0]], mask, hidden_cells)
        for level, step in enumerate(self.steps):
            if level and level in self.read:
                x = x + self.densify[str(level)](maps[self.read[level]], mask, hidden_cells)
            x = step(x)
        if len(self.steps) in self.read and len(self.steps):
            x = x + self.densify[str(len(self.steps))](maps[self.read[len(self.steps)]], mask, hidden_cells)
        return self.proj(x)


def _initialise(module: nn.Module) -> None:
    """SparK's: convolutions truncated-normal 0.02, transposed ones Kaiming-normal, biases 0."""
    if isinstance(module, nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
        nn.init.zeros_(module.bias)

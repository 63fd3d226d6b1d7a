"""Several maps of one encoder as one, and the linear decoder of that."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2mim.decoders.linear import LinearDecoder
from a2mim.decoders.tokens import insert_mask_token, make_token, whole_ratio
from a2mim.registry import MODELS


class FuseMaps(nn.Module):
    """The weighted sum of several maps, on the grid and at the width of the last.

    Every map but the last passes a 1x1 convolution to the last width, is resized where its grid is another (averaged to
    a coarser one, else bilinear) and enters with a softmax weight. The weights start equal and sum to 1.

    Args:
        channels: width of each map.
        repeat: cells of a coarser map are repeated, never mixed. Needed where a decoder puts its token on hidden cells:
            interpolation would carry what stands there into visible ones.

    Source: multi-level feature fusion, https://arxiv.org/abs/2308.00261, equation 5.
    """

    def __init__(self, channels: list[int], repeat: bool = False):
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(width, channels[-1], kernel_size=1) for width in channels[:-1])
        self.logits = nn.Parameter(torch.ones(len(channels)))
        self.repeat = repeat

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, D_i, h_i, w_i) -> (B, D, h, w) of the last."""
        last = maps[-1]
        projected = [project(one) for project, one in zip(self.projections, maps[:-1], strict=True)]
        fitted = [*(resize(one, (last.shape[2], last.shape[3]), self.repeat) for one in projected), last]
        weights = self.logits.softmax(dim=0)
        return sum((weight * one for weight, one in zip(weights, fitted, strict=True)), torch.zeros_like(last))


def resize(features: Tensor, grid: tuple[int, int], repeat: bool = False) -> Tensor:
    """(B, D, h, w) on another grid: averaged to a coarser one; to a finer one bilinear, or with its cells repeated."""
    if features.shape[-2:] == grid:
        return features
    if features.shape[-2] >= grid[0] and features.shape[-1] >= grid[1]:
        return F.adaptive_avg_pool2d(features, grid)
    if repeat:
        return F.interpolate(features, grid, mode="nearest-exact")
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)


@MODELS.register_module()
class FusedLinear(nn.Module):
    """A linear decoder of the weighted sum of all maps.

    Args:
        channels, strides, out_channels, out_stride, mask_token: see `a2mim.decoders`. The token stands in the hidden
            cells of the sum.

    Source: multi-level feature fusion, https://arxiv.org/abs/2308.00261, in front of SimMIM's decoder.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[float],
        out_channels: int = 3,
        out_stride: int = 1,
        mask_token: bool = True,
    ):
        super().__init__()
        ratio = whole_ratio("FusedLinear", strides[-1], out_stride)
        self.fuse = FuseMaps(channels, repeat=mask_token)
        self.token = make_token(channels[-1]) if mask_token else None
        self.decoder = LinearDecoder(channels[-1], ratio, out_channels)

    def forward(self, maps: list[Tensor], mask: Tensor, prefix: Tensor | None = None) -> Tensor:
        """maps: each (B, D, h, w); mask: (B, rows, cols) bool. Returns (B, out_channels, H / s, W / s)."""
        fused = self.fuse(maps)
        if self.token is not None:
            fused = insert_mask_token(fused, self.token, mask)
        return self.decoder(fused)

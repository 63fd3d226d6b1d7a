"""The cheapest decoder that sees a neighbourhood."""

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from a2mim.decoders.each_map import EachMap
from a2mim.decoders.linear import LinearDecoder
from a2mim.registry import MODELS


class Neck(nn.Sequential):
    """Depthwise 5x5, LayerNorm over channels, GELU, then a `LinearDecoder`; no residual."""

    def __init__(self, in_channels: int, stride: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, in_channels, kernel_size=5, padding=2, groups=in_channels),
            LayerNorm2d(in_channels),
            nn.GELU(),
            LinearDecoder(in_channels, stride, out_channels),
        )


@MODELS.register_module()
class ConvNeck(nn.Module):
    """A depthwise 5x5 convolution in front of the linear decoder, for each map; answers are averaged.

    Args:
        channels, strides, out_channels, out_stride, mask_token: see `a2mim.decoders`.

    Source: OpenMixup's neck of A²MIM's DeiT-S on ImageNet-100, https://github.com/Westlake-AI/openmixup.
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
        self.necks = EachMap(Neck, channels, strides, out_channels, out_stride, mask_token)

    def forward(
        self, maps: list[Tensor], mask: Tensor, prefix: Tensor | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """maps: each (B, D, h, w); mask: (B, rows, cols) bool. Returns (B, out_channels, h, w) on the target's grid."""
        return self.necks(maps, mask, prefix, grid)

"""A²MIM's and SimMIM's decoder: each cell by itself."""

import torch
from torch import Tensor, nn

from a2mim.registry import MODELS

WIDE = 2**22  # weights from which a CPU multiplies matrices; oneDNN's 1x1 convolution takes 2 to 4 times as long there


@MODELS.register_module()
class LinearDecoder(nn.Module):
    """One linear map a feature cell: a 1x1 convolution to its pixels, then PixelShuffle.

    Args:
        in_channels: width of the feature map.
        stride: pixels per feature cell.
        out_channels: channels of the target.

    Source: SimMIM, https://arxiv.org/abs/2111.09886, and A²MIM. Weight truncated-normal 0.02, bias 0.
    """

    def __init__(self, in_channels: int, stride: int, out_channels: int = 3):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels * stride**2, kernel_size=1)
        self.shuffle = nn.PixelShuffle(stride)
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h * stride, w * stride)."""
        if features.device.type != "cpu" or self.proj.weight.numel() < WIDE:
            return self.shuffle(self.proj(features))
        assert self.proj.bias is not None
        cells = torch.matmul(self.proj.weight.flatten(1), features.flatten(2)) + self.proj.bias[:, None]
        return self.shuffle(cells.unflatten(2, features.shape[2:]))

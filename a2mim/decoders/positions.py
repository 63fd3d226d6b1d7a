"""Fixed positions of a grid, as MAE has them."""

import torch
from torch import Tensor


def sincos_positions(width: int, rows: int, cols: int) -> Tensor:
    """(rows * cols, width) float32: the first half of the channels encodes x, the second y.

    Each half is [sin(p w), cos(p w)] with w_i = 10000^(-i / (width / 4)).

    Raises:
        ValueError: `width` is no multiple of 4.

    Source: MAE, https://arxiv.org/abs/2111.06377 (its code). timm's build_sincos2d_pos_embed has another order.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, not {width}")
    rates = 10000 ** (-torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width / 4))
    down, along = (torch.arange(number, dtype=torch.float64, device="cpu") for number in (rows, cols))
    y, x = (grid.flatten()[:, None] * rates for grid in torch.meshgrid(down, along, indexing="ij"))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()

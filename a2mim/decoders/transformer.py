"""MAE's decoder: a small transformer over the tokens of all cells."""

from functools import partial
from typing import Any

import torch
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from a2mim.decoders.fusion import FuseMaps
from a2mim.decoders.positions import sincos_positions
from a2mim.decoders.tokens import shown_cells, spread_mask, whole_ratio
from a2mim.registry import MODELS, check_whole


@MODELS.register_module()
class TransformerDecoder(nn.Module):
    """Embeds each cell, puts a learned token on hidden ones, adds fixed positions and runs transformer blocks.

    The encoder's class and register tokens take part and their outputs are dropped; they have position 0. Several maps
    are fused first (`FuseMaps`), and a LayerNorm follows. Their class and register tokens are fused in the same way;
    where a map lacks them, those of the last map alone pass the LayerNorm.

    Args:
        channels, strides, out_channels, out_stride, mask_token: see `a2mim.decoders`.
        embed_dim: width of the decoder, a multiple of 4 and of `num_heads`.
        depth: number of blocks.
        num_heads: of each block.

    Source: MAE, https://arxiv.org/abs/2111.06377: width 512, 8 blocks of 16 heads. With several maps, multi-level
        feature fusion, https://arxiv.org/abs/2308.00261.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[float],
        out_channels: int = 3,
        out_stride: int = 1,
        mask_token: bool = True,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
    ):
        super().__init__()
        ratio = whole_ratio("TransformerDecoder", strides[-1], out_stride)
        check_whole("TransformerDecoder", embed_dim=embed_dim, num_heads=num_heads)
        check_whole("TransformerDecoder", 0, depth=depth)
        if embed_dim % num_heads or embed_dim % 4:
            raise ValueError(
                f"TransformerDecoder: embed_dim={embed_dim} must be a multiple of 4 and of num_heads={num_heads}"
            )
        self.fuse = FuseMaps(channels, repeat=mask_token) if len(channels) > 1 else None
        self.fuse_norm = nn.LayerNorm(channels[-1], eps=1e-6) if len(channels) > 1 else nn.Identity()
        self.embed = nn.Linear(channels[-1], embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if mask_token else None
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm asks for a class in its types, and calls it
        self.blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        )
        self.norm = norm(embed_dim)
        self.pred = nn.Linear(embed_dim, out_channels * ratio**2)
        self.shuffle = nn.PixelShuffle(ratio)
        self._positions: dict[tuple, Tensor] = {}
        self.apply(_initialise)
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        maps: list[Tensor],
        mask: Tensor,
        prefix: Tensor | None = None,
        hidden_cells: int | None = None,
        prefixes: list[Tensor | None] | None = None,
    ) -> Tensor:
        """maps: each (B, D, h, w); mask: (B, rows, cols) bool; prefix: (B, P, D) or None, of the last map;
        hidden_cells: how many cells of `mask` are True, so that the host need not count them; prefixes: those of each
        map.

        Returns (B, out_channels, H / s, W / s).
        """
        grid = (maps[-1].shape[2], maps[-1].shape[3])
        tokens = self.embed_cells(maps, mask, hidden_cells)
        if self.mask_token is not None:
            hidden = spread_mask(mask, grid).flatten(1)[..., None]
            tokens = torch.where(hidden, self.mask_token.to(tokens.dtype), tokens)
        tokens = tokens + self.positions(grid, tokens)
        number = 0
        if prefix is not None:
            number = prefix.shape[1]
            prefix = self.fuse_prefixes(prefix, prefixes or []).to(maps[-1].dtype)
            tokens = torch.cat([self.embed(self.fuse_norm(prefix)).to(tokens.dtype), tokens], dim=1)
        answer = self.pred(self.norm(self.blocks(tokens)))[:, number:]
        return self.shuffle(rearrange(answer, "b (h w) c -> b c h w", h=grid[0]))

    def embed_cells(self, maps: list[Tensor], mask: Tensor, hidden_cells: int | None = None) -> Tensor:
        """Maps -> (B, h * w, embed_dim). Several maps of one grid are fused in the shown cells alone, and hidden ones
        are 0, where the mask token comes: most of the fusion's work is then left out.
        """
        last = maps[-1]
        if self.fuse is None:
            return self.embed(rearrange(last, "b d h w -> b (h w) d"))
        alike = all(one.shape[2:] == last.shape[2:] for one in maps)
        if self.mask_token is None or not alike or last.is_meta:
            return self.embed(self.fuse_norm(rearrange(self.fuse(maps), "b d h w -> b (h w) d")))
        _, places = shown_cells(mask, (last.shape[2], last.shape[3]), hidden_cells)
        shown = [rearrange(one, "b d h w -> (b h w) d")[places].T[None, ..., None] for one in maps]  # (1, D, N, 1)
        tokens = self.embed(self.fuse_norm(self.fuse(shown)[0, ..., 0].T))
        full = tokens.new_zeros(len(last) * last[0, 0].numel(), tokens.shape[-1]).index_copy_(0, places, tokens)
        return full.unflatten(0, (len(last), -1))

    def fuse_prefixes(self, last: Tensor, prefixes: list[Tensor | None]) -> Tensor:
        """Class and register tokens (B, P, D_i) of every map -> (B, P, D); the last's where another map has others."""
        alike = [one for one in prefixes if one is not None and one.shape[1] == last.shape[1]]
        if self.fuse is None or len(alike) < len(self.fuse.logits):
            return last
        return self.fuse([one.mT[..., None] for one in alike])[..., 0].mT

    def positions(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """(h * w, embed_dim), made once for each grid, device and type."""
        key = grid, like.device, like.dtype
        if key not in self._positions:
            self._positions[key] = sincos_positions(like.shape[-1], *grid).to(like)
        return self._positions[key]


def _initialise(module: nn.Module) -> None:
    """MAE's: Linear weights xavier-uniform, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

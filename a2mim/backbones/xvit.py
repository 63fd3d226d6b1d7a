"""X-ViT: a vision transformer whose attention costs as much per token at any resolution.

Published as UFO-ViT, https://arxiv.org/abs/2109.14382, and renamed X-ViT, https://arxiv.org/abs/2205.13805. No code of
the authors is public. The attention is theirs, equation by equation. Inferred, because the papers are silent:

- each head projects its own slice of the tokens to q, k, v (`qkv="per_head"`). With projections of the full width,
  `qkv="full"`, no variant has the published size; with this one they come out at 9.99, 20.88, 37.66 and 66.57 million
  parameters (published: 10.0, 20.7, 37.3 and 63.7; the base model stays 4.5 % off);
- one scale gamma per head, starting at 1, used for both the queries and K'V;
- around the attention, what XCiT (https://arxiv.org/abs/2106.09681) does: convolutional stem, local patch interaction
  between attention and MLP, LayerScale of 1 (12 blocks) or 1e-5 (24), one drop path rate for all blocks;
- two class layers after the blocks, made of the same attention: the query is the class token, keys and values are all
  tokens, and the patch tokens pass unchanged.

`xvit_nano_p16_224` is in neither paper: it has the shape of XCiT's smallest model, for small machines.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    DropPath,
    Mlp,
    register_notrace_function,
    register_notrace_module,
    resample_abs_pos_embed,
    to_2tuple,
    trunc_normal_,
)
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.xcit import LPI, ConvPatchEmbed
from torch import Tensor, nn

from a2mim.backbones.precision import widen, without_autocast

__all__ = ["XViT"]

PATCH_SIZE = 16
POOLS = ("", "avg", "token")
register_notrace_function(resample_abs_pos_embed)  # torch.fx cannot follow its comparison of sizes


def xnorm_attention(queries: Tensor, keys: Tensor, values: Tensor, gamma: Tensor, eps: float = 1e-6) -> Tensor:
    """X-ViT's attention: gamma^2 times the cosine between each query and each column of keys' x values.

    A = K'V; A_j = gamma A_j / max(|A_j|, eps), over the key channels; Q_n = gamma Q_n / max(|Q_n|, eps); O = QA.
    Linear in the number of tokens: A is (d, d). In float32 whatever the inputs, under autocast too. Keys are divided by
    N, which the norm undoes: the plain sum would leave float16's range at about ten thousand tokens.

    Args:
        queries: (B, heads, M, d).
        keys, values: (B, heads, N, d).
        gamma: (heads,).

    Returns:
        (B, heads, M, d), float32 (float64 for float64).
    """
    with without_autocast(queries):
        queries, keys, values, gamma = widen(queries, keys, values, gamma)
        gamma = gamma[:, None, None]
        summary = torch.einsum("bhnd,bhne->bhde", keys / keys.shape[2], values)
        summary = gamma * F.normalize(summary, dim=2, eps=eps)
        return gamma * F.normalize(queries, dim=3, eps=eps) @ summary


class HeadLinear(nn.Module):
    """Maps tokens to `parts` vectors a head: (B, N, D) -> `parts` tensors (B, heads, N, D / heads).

    Args:
        per_head: a head reads its own D / heads channels of each token; otherwise all D.
    """

    def __init__(self, dim: int, num_heads: int, parts: int, per_head: bool):
        super().__init__()
        self.num_heads, self.parts, self.per_head = num_heads, parts, per_head
        width = dim // num_heads
        self.weight = nn.Parameter(torch.empty(num_heads, width if per_head else dim, parts * width))
        self.bias = nn.Parameter(torch.zeros(parts * dim))
        trunc_normal_(self.weight, std=0.02)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        if self.per_head:
            slices = rearrange(tokens, "b n (h c) -> b n h c", h=self.num_heads)
            mapped = torch.einsum("bnhc,hce->bhne", slices, self.weight)
        else:
            mapped = torch.einsum("bnc,hce->bhne", tokens, self.weight)
        mapped = mapped + rearrange(self.bias, "(h e) -> h 1 e", h=self.num_heads)
        return list(mapped.chunk(self.parts, dim=-1))


@register_notrace_module  # the device's autocast is chosen from the tensor
class XNSA(nn.Module):
    """Multi-head X-norm attention of `queries` (B, M, D) to `tokens` (B, N, D); returns (B, M, D).

    Args:
        qkv: "per_head" or "full", see HeadLinear.
    """

    def __init__(self, dim: int, num_heads: int, qkv: str = "per_head", proj_drop: float = 0.0):
        super().__init__()
        if qkv not in ("per_head", "full"):
            raise ValueError(f'qkv={qkv!r} is unknown; choose "per_head" or "full".')
        if dim % num_heads:
            raise ValueError(f"a width of {dim} cannot be split among {num_heads} heads; choose a divisor of {dim}.")
        self.q = HeadLinear(dim, num_heads, 1, qkv == "per_head")
        self.kv = HeadLinear(dim, num_heads, 2, qkv == "per_head")
        self.gamma = nn.Parameter(torch.ones(num_heads))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, queries: Tensor, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """visible: (B, N), how much each of `tokens` counts in K'V, >= 0; None for all alike."""
        keys, values = self.kv(tokens)
        if visible is not None:
            keys = keys * visible[:, None, :, None].to(keys.dtype)
        (asked,) = self.q(queries)
        attended = xnorm_attention(asked, keys, values, self.gamma)
        return self.proj_drop(self.proj(rearrange(attended, "b h n c -> b n (h c)").to(queries.dtype)))


class Block(nn.Module):
    """x += gamma1 XNSA(LN x); x += gamma3 LPI(LN x); x += gamma2 MLP(LN x)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv: str, eta: float, drop: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = XNSA(dim, num_heads, qkv, drop)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.local_mp = LPI(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.gamma1, self.gamma3, self.gamma2 = (nn.Parameter(torch.full((dim,), eta)) for _ in range(3))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(B, height * width, D) -> the same."""
        normed = self.norm1(tokens)
        tokens = tokens + self.drop_path(self.gamma1 * self.attn(normed, normed))
        tokens = tokens + self.drop_path(self.gamma3 * self.local_mp(self.norm3(tokens), height, width))
        return tokens + self.drop_path(self.gamma2 * self.mlp(self.norm2(tokens)))


class ClassBlock(nn.Module):
    """The class token attends to all tokens and passes an MLP; the patch tokens pass unchanged."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv: str, eta: float, drop: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = XNSA(dim, num_heads, qkv, drop)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((dim,), eta)) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 1 + N, D), the class token first -> the same."""
        normed, row = self.norm1(tokens), tokens[:, :1]
        row = row + self.gamma1 * self.attn(normed[:, :1], normed)
        row = row + self.gamma2 * self.mlp(self.norm2(row))
        return torch.cat([row, tokens[:, 1:]], dim=1)


class XViT(nn.Module):
    """X-ViT with patches of 16 px; see the module's docstring for what is published and what is inferred.

    Args:
        img_size: pixels, one number or (height, width), for which positions are learned. Images of any other size get
            them by bicubic interpolation. The grid is the size / 16, rounded up.
        num_classes: 0 for no classifier.
        global_pool: "token" (the class token), "avg" (the mean of the patch tokens) or "" (all tokens).
        qkv: "per_head" or "full": what each head's projections read.
        eta: initial LayerScale.
        drop_rate, proj_drop_rate: before the classifier, after each projection.
        drop_path_rate: of each residual branch of the blocks.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        qkv: str = "per_head",
        eta: float = 1.0,
        cls_attn_layers: int = 2,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.num_classes, self.in_chans, self.grad_checkpointing = num_classes, in_chans, False
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.patch_embed = ConvPatchEmbed(to_2tuple(img_size), PATCH_SIZE, in_chans, embed_dim)
        self.grid = tuple(math.ceil(side / PATCH_SIZE) for side in to_2tuple(img_size))
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid), embed_dim))
        self.cls_token: nn.Parameter | None = nn.Parameter(torch.empty(1, 1, embed_dim))

        common = (embed_dim, num_heads, mlp_ratio, qkv, eta, proj_drop_rate)
        self.blocks = nn.ModuleList([Block(*common, drop_path_rate) for _ in range(depth)])
        self.feature_info = [dict(num_chs=embed_dim, reduction=PATCH_SIZE, module=f"blocks.{i}") for i in range(depth)]
        self.cls_attn_blocks = nn.ModuleList([ClassBlock(*common) for _ in range(cls_attn_layers)])
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_linear)

    def no_weight_decay(self) -> set[str]:
        gammas = {name for name, _ in self.named_parameters() if name.endswith("attn.gamma")}
        return {"pos_embed", "cls_token"} | gammas

    def group_matcher(self, coarse: bool = False) -> dict:
        return dict(
            stem=r"^cls_token|^pos_embed|^patch_embed",
            blocks=r"^blocks\.(\d+)",
            cls_attn_blocks=[(r"^cls_attn_blocks\.(\d+)", None), (r"^norm", (99999,))],
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None:
            pools = POOLS if self.num_prefix_tokens else POOLS[:2]
            if global_pool not in pools:
                raise ValueError(f"global_pool={global_pool!r} is unknown to this X-ViT; choose one of {pools}.")
            self.global_pool = global_pool
        self.num_classes = num_classes
        head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.to(self.pos_embed).train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """(B, C, H, W) -> (final tokens, patch maps after the blocks `indices`), or the maps alone.

        Args:
            indices: block numbers; an int for the last so many; None for all. The maps come in the network's order.
            norm: apply the final norm to the maps too.
            stop_early: skip the blocks behind the last index.
            output_fmt: "NCHW" or "NLC". There are no prefix tokens to return: the class token enters after the blocks.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f'output_fmt={output_fmt!r} is unknown to X-ViT; choose "NCHW" or "NLC".')
        taken, last = feature_take_indices(len(self.blocks), indices)
        tokens, height, width = self._embed(x)
        maps = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            tokens = self._run(block, tokens, height, width)
            if i in taken:
                maps.append(self.norm(tokens) if norm else tokens)
        if output_fmt == "NCHW":
            maps = [rearrange(m, "b (h w) d -> b d h w", h=height, w=width).contiguous() for m in maps]
        return maps if intermediates_only else (self._finish(tokens), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the blocks behind the last index and, on request, the norm and the layers that make the logits."""
        taken, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.cls_attn_blocks, self.cls_token, self.num_prefix_tokens = nn.ModuleList(), None, 0
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D), the class token first."""
        tokens, height, width = self._embed(x)
        for block in self.blocks:
            tokens = self._run(block, tokens, height, width)
        return self._finish(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, 1 + N, D) -> (B, D) if pre_logits, else (B, num_classes); unpooled where global_pool is ""."""
        if self.global_pool:
            x = x[:, self.num_prefix_tokens :].mean(dim=1) if self.global_pool == "avg" else x[:, 0]
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _embed(self, images: Tensor) -> tuple[Tensor, int, int]:
        """(B, C, H, W) -> patch tokens with their positions, rows, columns."""
        tokens, (height, width) = self.patch_embed(images)
        positions = resample_abs_pos_embed(self.pos_embed, [height, width], list(self.grid), num_prefix_tokens=0)
        return tokens + positions, height, width

    def _run(self, block: nn.Module, *args) -> Tensor:
        return checkpoint(block, *args) if self.grad_checkpointing else block(*args)

    def _finish(self, tokens: Tensor) -> Tensor:
        """Class token, class layers and norm."""
        if self.num_prefix_tokens:
            assert self.cls_token is not None
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for block in self.cls_attn_blocks:
            tokens = self._run(block, tokens)
        return self.norm(tokens)


def init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def fit_positions(state_dict: dict, model: XViT) -> dict:
    """Interpolates the positions of weights that were trained at another size: `input_size` of pretrained_cfg."""
    cfg: Any = model.pretrained_cfg
    old = [math.ceil(side / PATCH_SIZE) for side in cfg["input_size"][1:]]
    positions = state_dict["pos_embed"]
    if positions.shape[1] == math.prod(old):  # else the strict loading that follows says what does not fit
        positions = resample_abs_pos_embed(positions, list(model.grid), old, num_prefix_tokens=0)
    return {**state_dict, "pos_embed": positions}


def _cfg() -> dict:
    return dict(
        url="",
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=None,
        crop_pct=1.0,
        interpolation="bicubic",
        fixed_input_size=True,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv="patch_embed.proj.0.0",
        classifier="head",
    )


default_cfgs = generate_default_cfgs(
    {f"xvit_{size}_p16_224": _cfg() for size in ("nano", "tiny", "small", "medium", "base")}
)


def _create(variant: str, pretrained: bool, given: dict, **chosen) -> XViT:
    arguments = {"out_indices": 3, **chosen, **given}
    out_indices = arguments.pop("out_indices")
    return build_model_with_cfg(
        XViT,
        variant,
        pretrained,
        pretrained_filter_fn=fit_positions,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **arguments,
    )


@register_model
def xvit_nano_p16_224(pretrained: bool = False, **kwargs) -> XViT:
    """2.6 million parameters; ours, not the papers'."""
    return _create("xvit_nano_p16_224", pretrained, kwargs, embed_dim=128, depth=12, num_heads=4, eta=1.0)


@register_model
def xvit_tiny_p16_224(pretrained: bool = False, **kwargs) -> XViT:
    """10.0 million parameters."""
    return _create("xvit_tiny_p16_224", pretrained, kwargs, embed_dim=192, depth=24, num_heads=4, eta=1e-5)


@register_model
def xvit_small_p16_224(pretrained: bool = False, **kwargs) -> XViT:
    """20.9 million parameters."""
    return _create("xvit_small_p16_224", pretrained, kwargs, embed_dim=384, depth=12, num_heads=8, eta=1.0)


@register_model
def xvit_medium_p16_224(pretrained: bool = False, **kwargs) -> XViT:
    """37.7 million parameters."""
    return _create("xvit_medium_p16_224", pretrained, kwargs, embed_dim=384, depth=24, num_heads=8, eta=1e-5)


@register_model
def xvit_base_p16_224(pretrained: bool = False, **kwargs) -> XViT:
    """66.6 million parameters."""
    return _create("xvit_base_p16_224", pretrained, kwargs, embed_dim=512, depth=24, num_heads=8, eta=1e-5)

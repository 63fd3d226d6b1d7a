"""LinGlo: convolution and key-only global attention in turn, at a cost linear in the number of pixels.

**A reconstruction** from the abstract of https://arxiv.org/abs/2207.00188 and its published sizes. The accuracy of the
paper does not apply to it. Known: attention without a query-key product, weighted by a saliency gate; linear time and
memory; convolution and attention layers that alternate in every stage; three sizes of 3.4, 13.1 and 25.4 million
parameters. Inferred, because the formulas, heads, depths and kind of convolution are not to be found:

- the macro design is PVTv2's (https://arxiv.org/abs/2106.13797), whose b0, b1 and b2 have these very sizes: four stages
  of overlapping embeddings, its widths, heads and MLP ratios, a norm behind each stage, average pooling;
- the convolution layer is an inverted residual of expansion 2, pre-activated;
- the attention is `KeyOnlyAttention` with its interaction "product";
- one unit is a convolution layer and an attention layer. With 1, 1, 4, 1 units (b2: 3, 4, 6, 3) the models have 3.42,
  13.08 and 25.42 million parameters.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    DropPath,
    LayerNorm2d,
    Mlp,
    register_notrace_function,
    register_notrace_module,
    trunc_normal_,
)
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from a2mim.backbones.precision import widen, without_autocast

__all__ = ["LinGlo"]

INTERACTIONS = ("product", "gate", "broadcast")
register_notrace_function(rearrange)  # torch.fx cannot trace into it


@register_notrace_module  # the device's autocast is chosen from the tensor
class KeyOnlyAttention(nn.Module):
    """Every token meets one summary of all keys, weighted by their saliency (inferred).

    [K, V] = ZW + b; s_nh = <u_h, K_nh> / sqrt(d_h) + b_h; a = softmax_n(s); g_h = sum_n a_nh K_nh; out = YW_o + b.
    Attention with N equal rows, hence linear. Scores, softmax and the sum run in float32, under autocast too.

    Args:
        interaction: how token and summary meet; the parameters are the same.
            "product": Y = GELU(V) * g.
            "gate": Y = sigmoid(s) * g' + (1 - sigmoid(s)) * V, with g' = sum_n a_n V_n.
            "broadcast": Y = g' at every token.
    """

    def __init__(self, dim: int, num_heads: int, interaction: str = "product", proj_drop: float = 0.0):
        super().__init__()
        if interaction not in INTERACTIONS:
            raise ValueError(f"interaction={interaction!r} is unknown; choose one of {', '.join(INTERACTIONS)}.")
        if dim % num_heads:
            raise ValueError(f"a width of {dim} cannot be split among {num_heads} heads; choose a divisor of {dim}.")
        self.num_heads, self.interaction, self.scale = num_heads, interaction, (dim // num_heads) ** -0.5
        self.kv = nn.Linear(dim, 2 * dim)
        self.saliency = nn.Parameter(trunc_normal_(torch.empty(num_heads, dim // num_heads), std=0.02))
        self.saliency_bias = nn.Parameter(torch.zeros(num_heads))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D). visible: (B, N), how much each token counts in the sums, >= 0; None for all alike."""
        keys, values = rearrange(self.kv(tokens), "b n (p h c) -> p b h n c", p=2, h=self.num_heads).unbind(0)
        with without_autocast(tokens):
            keys, values, saliency, bias = widen(keys, values, self.saliency, self.saliency_bias)
            met = self._interact(keys, values, saliency, bias, visible)
        return self.proj_drop(self.proj(rearrange(met, "b h n c -> b n (h c)").to(tokens.dtype)))

    def _interact(self, keys: Tensor, values: Tensor, saliency: Tensor, bias: Tensor, visible: Tensor | None) -> Tensor:
        """keys, values: (B, heads, N, c); saliency: (heads, c); bias: (heads,). Returns (B, heads, N, c)."""
        scores = self.scale * torch.einsum("bhnc,hc->bhn", keys, saliency) + bias[:, None]
        counted = scores if visible is None else scores + visible.to(scores.dtype).log()[:, None]  # log 0: left out
        weights = counted.softmax(dim=-1)[:, :, None]
        if self.interaction == "product":
            return F.gelu(values) * (weights @ keys)
        summary = weights @ values
        if self.interaction == "broadcast":
            return summary.expand_as(values)
        return torch.lerp(values, summary.expand_as(values), scores.sigmoid()[..., None])


def conv_layer(dim: int, expansion: int = 2) -> nn.Sequential:
    """BN, 1x1 up, BN, GELU, depthwise 3x3, BN, GELU, 1x1 down: (B, D, H, W) -> (B, D, H, W)."""
    hidden = expansion * dim
    return nn.Sequential(
        nn.BatchNorm2d(dim),
        nn.Conv2d(dim, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.GELU(),
        nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
        nn.BatchNorm2d(hidden),
        nn.GELU(),
        nn.Conv2d(hidden, dim, 1),
    )


class Unit(nn.Module):
    """x += conv(x); x += KOA(LN x); x += MLP(LN x)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, interaction: str, drop: float, drop_path: float):
        super().__init__()
        self.conv = conv_layer(dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = KeyOnlyAttention(dim, num_heads, interaction, drop)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> the same."""
        x = x + self.drop_path(self.conv(x))
        height, width = x.shape[2:]
        tokens = rearrange(x, "b d h w -> b (h w) d")
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return rearrange(tokens, "b (h w) d -> b d h w", h=height, w=width)


class OverlapEmbed(nn.Module):
    """(B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride)): a strided convolution whose windows overlap, LN."""

    def __init__(self, in_chans: int, dim: int, kernel_size: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = LayerNorm2d(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class Stage(nn.Module):
    """Halves the resolution (but the first), then units of one width, then LN: (B, C, H, W) -> (B, D, h, w)."""

    def __init__(self, downsample: nn.Module, units: list[Unit], dim: int):
        super().__init__()
        self.downsample = downsample
        self.units = nn.ModuleList(units)
        self.norm = LayerNorm2d(dim, eps=1e-6)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for unit in self.units:
            x = checkpoint(unit, x) if self.grad_checkpointing else unit(x)
        return self.norm(x)


class LinGlo(nn.Module):
    """LinGlo, reconstructed: see the module's docstring. Takes images of any size.

    Args:
        img_size: ignored; accepted so that callers can pass it to every model.
        num_classes: 0 for no classifier.
        global_pool: "avg" or "" (the last map, unpooled).
        embed_dims, depths, num_heads, mlp_ratios: of each stage; depths in units of one convolution and one attention.
        interaction: see KeyOnlyAttention.
        drop_rate, proj_drop_rate: before the classifier, after each projection.
        drop_path_rate: of the last unit's residual branches; it grows linearly from 0 at the first.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: tuple[int, ...] = (32, 64, 160, 256),
        depths: tuple[int, ...] = (1, 1, 4, 1),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        interaction: str = "product",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.in_chans = in_chans
        self.patch_embed = OverlapEmbed(in_chans, embed_dims[0], kernel_size=7, stride=4)
        rates = iter(drop_path_rate * i / max(1, sum(depths) - 1) for i in range(sum(depths)))
        stages, self.feature_info = [], []
        for i, dim in enumerate(embed_dims):
            units = [
                Unit(dim, num_heads[i], mlp_ratios[i], interaction, proj_drop_rate, next(rates))
                for _ in range(depths[i])
            ]
            downsample = OverlapEmbed(embed_dims[i - 1], dim, kernel_size=3, stride=2) if i else nn.Identity()
            stages.append(Stage(downsample, units, dim))
            self.feature_info.append(dict(num_chs=dim, reduction=4 * 2**i, module=f"stages.{i}"))
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.head_drop = nn.Dropout(drop_rate)
        self.global_pool = global_pool
        self.reset_classifier(num_classes, global_pool)
        self.apply(init_weights)

    def no_weight_decay(self) -> set[str]:
        return set()

    def group_matcher(self, coarse: bool = False) -> dict:
        units = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.units\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),
        ]
        return dict(stem=r"^patch_embed", blocks=r"^stages\.(\d+)" if coarse else units)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        stage: Any
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool not in (None, "", "avg"):
            raise ValueError(f'global_pool={global_pool!r} is unknown to LinGlo; choose "avg" or "".')
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.num_classes = num_classes
        head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.to(self.patch_embed.proj.weight).train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """(B, C, H, W) -> (final map, maps after the stages `indices`), or the maps alone.

        Args:
            indices: stage numbers; an int for the last so many; None for all. The maps come in the network's order.
            norm: without effect, every stage ends in a norm of its own.
            stop_early: skip the stages behind the last index.
            output_fmt: "NCHW" or "NLC".
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f'output_fmt={output_fmt!r} is unknown to LinGlo; choose "NCHW" or "NLC".')
        taken, last = feature_take_indices(len(self.stages), indices)
        maps, x = [], self.patch_embed(x)
        for i, stage in enumerate(self.stages):
            if stop_early and i > last:
                break
            x = stage(x)
            if i in taken:
                maps.append(x if output_fmt == "NCHW" else rearrange(x, "b d h w -> b (h w) d"))
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages behind the last index and, when asked or left without its input, the classifier."""
        taken, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = nn.Sequential(*list(self.stages)[: last + 1])
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H / 32, W / 32), sizes rounded up."""
        return self.stages(self.patch_embed(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, D, h, w) -> (B, D) if pre_logits, else (B, num_classes); unpooled where global_pool is ""."""
        x = self.head_drop(x.mean(dim=(2, 3)) if self.global_pool else x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def init_weights(module: nn.Module) -> None:
    """Linear: truncated normal of 0.02; convolutions: normal by fan-out within a group; biases 0."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _cfg() -> dict:
    return dict(
        url="",
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        crop_pct=0.9,
        interpolation="bicubic",
        fixed_input_size=False,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv="patch_embed.proj",
        classifier="head",
    )


default_cfgs = generate_default_cfgs({f"linglo_b{i}": _cfg() for i in range(3)})


def _create(variant: str, pretrained: bool, given: dict, **chosen) -> LinGlo:
    arguments = {"out_indices": (0, 1, 2, 3), **chosen, **given}
    out_indices = arguments.pop("out_indices")
    return build_model_with_cfg(
        LinGlo, variant, pretrained, feature_cfg=dict(out_indices=out_indices, feature_cls="getter"), **arguments
    )


@register_model
def linglo_b0(pretrained: bool = False, **kwargs) -> LinGlo:
    """3.4 million parameters."""
    return _create("linglo_b0", pretrained, kwargs, embed_dims=(32, 64, 160, 256), depths=(1, 1, 4, 1))


@register_model
def linglo_b1(pretrained: bool = False, **kwargs) -> LinGlo:
    """13.1 million parameters."""
    return _create("linglo_b1", pretrained, kwargs, embed_dims=(64, 128, 320, 512), depths=(1, 1, 4, 1))


@register_model
def linglo_b2(pretrained: bool = False, **kwargs) -> LinGlo:
    """25.4 million parameters."""
    return _create("linglo_b2", pretrained, kwargs, embed_dims=(64, 128, 320, 512), depths=(3, 4, 6, 3))

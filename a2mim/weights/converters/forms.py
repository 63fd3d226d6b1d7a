"""One table of the names that other toolkits give to families of networks that timm has too.

Sources: the toolkits' own modules, whose features the tests compare with timm's (torchvision, transformers, mmpretrain
1.2); OpenMixup from its code. Invariant: a tensor is renamed or re-ordered, and its values never change.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange

from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD

BICUBIC = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic"}
BILINEAR = BICUBIC | {"interpolation": "bilinear"}
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}


@dataclass(frozen=True)
class Naming:
    """One toolkit's names for one family of networks.

    Args:
        title: for reports.
        marks: patterns; a file has this format if each pattern matches the beginning of some key.
        rules: (pattern, replacement) of re.sub, applied in order to every key.
        reshape: from the renamed tensors to timm's, if renaming is not enough.
        pixels: preprocessing that the toolkit's weights expect; None: timm's for the architecture.
        examples: timm names, for the message that asks for one.
    """

    title: str
    marks: tuple[str, ...]
    rules: tuple[tuple[str, str | Callable], ...] = ()
    reshape: Callable[[dict], dict] | None = None
    pixels: dict | None = None
    examples: tuple[str, ...] = ()


def _shift(template: str, by: int):
    """A replacement that adds `by` to the first group, the number of a stage: toolkits count from 0 or from 1."""
    return lambda match: template.format(int(match[1]) + by, *match.groups()[1:])


def _join_qkv(tensors: dict) -> dict:
    """….attn.{q,k,v}.{weight,bias} -> ….attn.qkv.{weight,bias}, concatenated along the first axis."""
    joined = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)([qkv])\.(weight|bias)", key)
        if not match:
            joined[key] = value
        elif match[2] == "q":
            parts = [tensors.get(f"{match[1]}{letter}.{match[3]}") for letter in "qkv"]
            present = [part for part in parts if part is not None]
            if len(present) == 3:  # otherwise loading reports the missing key
                joined[f"{match[1]}qkv.{match[3]}"] = torch.cat(present)
    return joined


def _split_class_attention(tensors: dict) -> dict:
    """Splits XCiT's class attention: one qkv in the authors' code, three layers in timm's."""
    split: dict[str, Any] = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"(cls_attn_blocks\.\d+\.attn\.)qkv\.(weight|bias)", key)
        if match:
            split |= {f"{match[1]}{x}.{match[2]}": part for x, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            split[key] = value
    return split


def _merge_as_timm(tensors: dict) -> dict:
    """Re-orders OpenMMLab's PatchMerging, which unfolds (c, row, column); timm's concatenates (column, row, c)."""
    pattern = re.compile(r"layers\.\d+\.downsample\.(reduction\.weight|norm\.(weight|bias))")
    merged = dict(tensors)
    for key, value in tensors.items():
        if pattern.fullmatch(key):
            merged[key] = rearrange(value, "... (c h w) -> ... (w h c)", h=2, w=2)
    return merged


def _layer_scale(tensors: dict) -> dict:
    """Renames gamma_1 and gamma_2 of OpenMixup's ViT: timm's BEiT keeps these names, its ViT has ls1 and ls2."""
    if any(key.endswith("relative_position_bias_table") for key in tensors):
        return tensors
    return {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): value for key, value in tensors.items()}


def _with_registers(tensors: dict) -> dict:
    """Converts DINOv2 with registers. Its position embedding includes the class token, and timm's does not.

    So the embedding of the class token is added to the token itself. A SwiGLU with one matrix is timm's fc1 and fc2.
    """
    if "register_tokens" in tensors:
        tensors = dict(tensors)
        tensors["reg_token"], positions = tensors.pop("register_tokens"), tensors["pos_embed"]
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:]
    return {re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", k)): v for k, v in tensors.items()}


def _dense(tensors: dict) -> dict:
    """FCMAE's sparse convolutions as dense ones. Kernels: (positions, in, out), or (positions, channels) depthwise."""
    dense = {}
    for key, value in tensors.items():
        if key.endswith(".kernel"):
            side = math.isqrt(value.shape[0])
            shape = "(w h) i o -> o i h w" if value.ndim == 3 else "(w h) c -> c 1 h w"
            key, value = f"{key.removesuffix('kernel')}weight", rearrange(value, shape, h=side)
        elif key.endswith(".bias") and value.ndim > 1:
            value = value.reshape(-1)
        dense[key] = value
    return dense


_CHUNK = (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.")  # blocks.CHUNK.BLOCK; BLOCK counts over all chunks
_MM_FFN = ((r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."), (r"\.ffn\.layers\.1\.", ".mlp.fc2."))
_VITS = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224")
_SWINS = ("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224")
_CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large", "convnext_atto")
_XCITS = ("xcit_nano_12_p16_224", "xcit_tiny_12_p16_224", "xcit_small_12_p16_224", "xcit_medium_24_p16_224")
_RESNETS = ("resnet18", "resnet50", "resnet34", "resnet101", "resnet152")

_CONVNEXT_AUTHORS = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
)
_DINOV2 = ("vit_small_patch14_dinov2", "vit_base_patch14_dinov2", "vit_large_patch14_reg4_dinov2")

OWN = Naming("the architecture's own names", ())
NAMINGS = (
    Naming(
        "a ResNet of transformers",
        (r"embedder\.embedder\.convolution\.weight", r"encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight"),
        (
            (r"^embedder\.embedder\.convolution", "conv1"),
            (r"^embedder\.embedder\.normalization", "bn1"),
            (r"\.shortcut\.convolution\.", ".downsample.0."),
            (r"\.shortcut\.normalization\.", ".downsample.1."),
            (r"\.layer\.(\d+)\.convolution\.", _shift(".conv{}.", 1)),
            (r"\.layer\.(\d+)\.normalization\.", _shift(".bn{}.", 1)),
            (r"^encoder\.stages\.(\d+)\.layers\.", _shift("layer{}.", 1)),
        ),
        pixels=BICUBIC,
        examples=_RESNETS,
    ),
    Naming(
        "a ViT of transformers",
        (r"embeddings\.patch_embeddings\.projection\.weight", r"embeddings\.position_embeddings$"),
        (
            (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.cls_token$", "cls_token"),
            (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
            (r"\.attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.", r".attn.\1."),
            (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
            (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
            (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"^layernorm\.", "norm."),
        ),
        _join_qkv,
        HALF,
        _VITS,
    ),
    Naming(
        "a ViT of mmpretrain or OpenMixup",
        (r"layers\.0\.ln1\.weight", r"patch_embed\.projection\.weight"),
        (
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^layers\.(\d+)\.", r"blocks.\1."),
            (r"\.ln([12])\.", r".norm\1."),
            (r"^ln1\.", "norm."),
            *_MM_FFN,
            (r"\.attn\.gamma1\.weight$", ".ls1.gamma"),
            (r"\.ffn\.gamma2\.weight$", ".ls2.gamma"),
        ),
        _layer_scale,
        BICUBIC,
        (*_VITS, "beit_base_patch16_224", "beit_large_patch16_224"),
    ),
    Naming(
        "a Swin of mmpretrain or OpenMixup",
        (r"stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight",),
        (
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            # there, the merging layer ends a stage; in timm it begins the next stage
            (r"^stages\.(\d+)\.downsample\.", _shift("layers.{}.downsample.", 1)),
            (r"^stages\.", "layers."),
            (r"\.attn\.w_msa\.", ".attn."),
            *_MM_FFN,
            (r"^norm3\.", "norm."),
        ),
        _merge_as_timm,
        BICUBIC,
        _SWINS,
    ),
    Naming(
        "a ConvNeXt of mmpretrain or OpenMixup",
        (r"stages\.0\.0\.depthwise_conv\.weight",),
        (
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
            (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.depthwise_conv\.", ".conv_dw."),
            (r"\.pointwise_conv([12])\.", r".mlp.fc\1."),
            (r"\.grn\.gamma$", ".mlp.grn.weight"),
            (r"\.grn\.beta$", ".mlp.grn.bias"),
            (r"^norm3\.", "head.norm."),
        ),
        pixels=BICUBIC,
        examples=_CONVNEXTS,
    ),
    Naming(
        "an XCiT of mmpretrain",
        (r"xca_layers\.0\.attn\.temperature",),
        (
            (r"^patch_embed\.proj\.(\d)\.conv\.", lambda found: f"patch_embed.proj.{2 * int(found[1])}.0."),
            (r"^patch_embed\.proj\.(\d)\.bn\.", lambda found: f"patch_embed.proj.{2 * int(found[1])}.1."),
            (r"^pos_embed\.token_projection\.conv\.", "pos_embed.token_projection."),
            (r"^xca_layers\.", "blocks."),
            (r"^ca_layers\.", "cls_attn_blocks."),
            (r"\.local_mp\.conv1\.bn\.", ".local_mp.bn."),
            (r"\.local_mp\.conv([12])\.conv\.", r".local_mp.conv\1."),
            *_MM_FFN,
        ),
        pixels=BICUBIC,
        examples=_XCITS,
    ),
    Naming(
        "a ViT of torchvision",
        (r"conv_proj\.weight", r"encoder\.layers\.encoder_layer_0\.ln_1\.weight"),
        (
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
            (r"^encoder\.ln\.", "norm."),
        ),
        pixels=BILINEAR,
        examples=("vit_base_patch16_224", "vit_large_patch16_224", "vit_base_patch32_224"),
    ),
    Naming(
        "a Swin of torchvision",
        (r"features\.1\.0\.attn\.relative_position_bias_table", r"features\.2\.reduction\.weight"),
        (
            (r"^features\.0\.0\.", "patch_embed.proj."),
            (r"^features\.0\.2\.", "patch_embed.norm."),
            (
                r"^features\.([246])\.(norm|reduction)\.",
                lambda found: f"layers.{int(found[1]) // 2}.downsample.{found[2]}.",
            ),
            (r"^features\.([1357])\.(\d+)\.", lambda found: f"layers.{int(found[1]) // 2}.blocks.{found[2]}."),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.3\.", ".mlp.fc2."),
        ),
        pixels=BICUBIC,
        examples=_SWINS,
    ),
    Naming(
        "a ConvNeXt of torchvision",
        (r"features\.1\.0\.layer_scale", r"features\.1\.0\.block\.0\.weight"),
        (
            (r"^features\.0\.", "stem."),
            (r"^features\.([246])\.([01])\.", lambda found: f"stages.{int(found[1]) // 2}.downsample.{found[2]}."),
            (r"^features\.([1357])\.(\d+)\.", lambda found: f"stages.{int(found[1]) // 2}.blocks.{found[2]}."),
            (r"\.layer_scale$", ".gamma"),
            (r"\.block\.0\.", ".conv_dw."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".mlp.fc1."),
            (r"\.block\.5\.", ".mlp.fc2."),
            (r"^classifier\.0\.", "head.norm."),
        ),
        pixels=BILINEAR,
        examples=_CONVNEXTS,
    ),
    Naming(
        "an XCiT in its authors' names",
        (r"(pos_embeder\.token_projection|cls_attn_blocks\.0\.attn\.qkv)\.weight", r"blocks\.0\.attn\.temperature"),
        ((r"^pos_embeder\.", "pos_embed."),),
        _split_class_attention,
        BICUBIC,
        _XCITS,
    ),
    Naming(
        "a CrossViT in its authors' names",
        (r"pos_embed\.0$", r"cls_token\.0$"),
        ((r"^(pos_embed|cls_token)\.(\d+)$", r"\1_\2"),),
        pixels=BICUBIC,
        examples=("crossvit_tiny_240", "crossvit_small_240", "crossvit_base_240", "crossvit_9_240"),
    ),
    Naming(
        "a ViT in DINOv2's training names",
        (r"blocks\.\d+\.\d+\.attn\.qkv\.weight", r"patch_embed\.proj\.weight"),
        (_CHUNK,),
        _with_registers,
        BICUBIC,
        _DINOV2,
    ),
    Naming(
        "a ViT of DINOv2",
        (r"register_tokens$", r"blocks\.0\.attn\.qkv\.weight"),
        ((r"^blocks\.0\.", "blocks.0."),),
        _with_registers,
        BICUBIC,
        _DINOV2,
    ),
    Naming(
        "a ConvNeXt of FCMAE",
        (r"stages\.0\.0\.dwconv\.kernel", r"downsample_layers\.0\.0\.weight"),
        (*_CONVNEXT_AUTHORS, (r"\.(ln|linear)\.(weight|bias)$", r".\2")),
        _dense,
        BICUBIC,
        ("convnextv2_atto", "convnextv2_tiny", "convnextv2_base", "convnextv2_large"),
    ),
    Naming(
        "a ResNet as a torch.nn.Sequential of its parts, as lightly's users save it",
        (r"0\.weight", r"1\.running_mean", r"4\.0\.conv1\.weight", r"7\.0\.conv1\.weight"),
        (
            (r"^0\.", "conv1."),
            (r"^1\.", "bn1."),
            (r"^([4-7])\.", lambda found: f"layer{int(found[1]) - 3}."),
        ),
        pixels=BILINEAR,
        examples=_RESNETS,
    ),
    Naming(
        "a ConvNeXt in its authors' names",
        (r"stages\.0\.0\.dwconv\.weight", r"downsample_layers\.0\.0\.weight"),
        _CONVNEXT_AUTHORS,
        pixels=BICUBIC,
        examples=_CONVNEXTS,
    ),
    Naming(
        "a Swin in its authors' names",
        (r"layers\.0\.downsample\.reduction\.weight", r"layers\.0\.blocks\.0\.attn\.qkv\.weight"),
        ((r"^layers\.(\d+)\.downsample\.", _shift("layers.{}.downsample.", 1)),),
        pixels=BICUBIC,
        examples=_SWINS,
    ),
    Naming(
        "a ResNet in the names of torchvision, timm and mmpretrain",
        (r"conv1\.weight", r"layer1\.0\.conv1\.weight", r"layer4\.0\.conv1\.weight"),
        examples=_RESNETS,
    ),
    Naming(
        "a ViT in the names of timm, DINO and MAE",
        (r"blocks\.0\.attn\.qkv\.weight", r"patch_embed\.proj\.weight", r"cls_token$"),
        examples=_VITS,
    ),
    Naming(
        "a ViT without a class token, as I-JEPA's",
        (r"blocks\.0\.attn\.qkv\.weight", r"patch_embed\.proj\.weight", r"pos_embed$"),
        examples=("vit_huge_patch14_224", *_VITS),
    ),
    Naming(
        "an XCiT in timm's names",
        (r"blocks\.0\.attn\.temperature", r"patch_embed\.proj\.0\.0\.weight"),
        examples=_XCITS,
    ),
    Naming("a ConvNeXt in timm's names", (r"stages\.0\.blocks\.0\.conv_dw\.weight",), examples=_CONVNEXTS),
    Naming("a Swin in timm's names", (r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table",), examples=_SWINS),
)

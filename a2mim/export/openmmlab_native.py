"""timm's architectures as mmpretrain's own classes: their configuration, and timm's keys by its names.

Each function returns None for an encoder that its class cannot compute. Any other result is still checked.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from a2mim.export.contracts import RESNETS
from a2mim.export.target import Subject
from a2mim.export.torchvision_file import plain_resnet_only

MLP = ((r"\.mlp\.fc1\.", ".ffn.layers.0.0."), (r"\.mlp\.fc2\.", ".ffn.layers.1."))


@dataclass
class Native:
    """What builds it (type and arguments), its tensors by OpenMMLab's keys, and what its forward gives."""

    config: dict
    tensors: dict[str, Tensor]
    maps: tuple[Tensor, ...]


def resnet(subject: Subject) -> Native | None:
    name = subject.name
    if name not in RESNETS or name.startswith("wide") or plain_resnet_only(subject, "", channels=False):
        return None
    config = {"type": "ResNet", "depth": int(re.findall(r"\d+", name)[0]), "style": "pytorch"}
    if name.startswith("resnext"):
        _, _, groups, width = RESNETS[name]
        config |= {"type": "ResNeXt", "groups": groups, "width_per_group": width}
    return Native(config, subject.tensors, (subject.outputs["unpooled"],))


def vision_transformer(subject: Subject) -> Native | None:
    model = subject.model
    if type(model).__name__ != "VisionTransformer" or model.global_pool not in ("token", "avg"):
        return None
    block, averages = model.blocks[0], model.global_pool == "avg"
    heads, layers = block.attn.num_heads, len(model.blocks)
    config = {
        "type": "VisionTransformer",
        "arch": {
            "embed_dims": model.embed_dim,
            "num_layers": layers,
            "num_heads": heads,
            "feedforward_channels": block.mlp.fc1.out_features,
        },
        "img_size": tuple(model.patch_embed.img_size),
        "patch_size": model.patch_embed.patch_size[0],
        "qkv_bias": block.attn.qkv.bias is not None,
        "norm_cfg": {"type": "LN", "eps": block.norm1.eps},
        "out_type": "avg_featmap" if averages else "cls_token",
        "final_norm": not averages,
    }
    final = ((r"^fc_norm\.", "ln2."),) if averages else ((r"^norm\.", "ln1."),)
    renames = (
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^blocks\.(\d+)\.norm", r"layers.\1.ln"),
        (r"^blocks\.", "layers."),
        *MLP,
        *final,
    )
    plain = not averages or isinstance(model.norm, nn.Identity)
    if not plain or not exact_gelu(block.mlp.act) or len(set(model.patch_embed.patch_size)) > 1:
        return None
    return Native(config, rename(subject.tensors, renames), (subject.outputs["pooled"],))


def xcit(subject: Subject) -> Native | None:
    model = subject.model
    if type(model).__name__ != "Xcit" or model.global_pool != "token":
        return None
    block = model.blocks[0]
    config = {
        "type": "XCiT",
        "img_size": tuple(model.patch_embed.img_size),
        "patch_size": model.patch_embed.patch_size,
        "embed_dims": model.embed_dim,
        "depth": len(model.blocks),
        "cls_attn_layers": len(model.cls_attn_blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / model.embed_dim,
        "use_pos_embed": model.pos_embed is not None,
        "tokens_norm": model.cls_attn_blocks[0].tokens_norm,
        "norm_cfg": {"type": "LN", "eps": block.norm1.eps},
    }
    renames = (
        (r"^patch_embed\.proj\.(\d)\.0\.", lambda m: f"patch_embed.proj.{int(m[1]) // 2}.conv."),
        (r"^patch_embed\.proj\.(\d)\.1\.", lambda m: f"patch_embed.proj.{int(m[1]) // 2}.bn."),
        (r"token_projection\.", "token_projection.conv."),
        (r"^blocks\.", "xca_layers."),
        (r"^cls_attn_blocks\.", "ca_layers."),
        (r"\.local_mp\.conv(\d)\.", r".local_mp.conv\1.conv."),
        (r"\.local_mp\.bn\.", ".local_mp.conv1.bn."),
        *MLP,
    )
    return Native(config, rename(subject.tensors, renames), (subject.outputs["pooled"],))


def swin(subject: Subject) -> Native | None:
    model = subject.model
    if type(model).__name__ != "SwinTransformer" or len(model.layers) != 4:
        return None
    blocks = [stage.blocks[0] for stage in model.layers]
    windows = [block.window_size for block in blocks]
    if any(height != width for height, width in windows) or not exact_gelu(blocks[0].mlp.act):
        return None
    if any(side % block.window_size[0] for block in blocks for side in block.input_resolution):
        return None  # timm pads after shifting the windows, OpenMMLab before
    config = {
        "type": "SwinTransformer",
        "arch": {
            "embed_dims": model.embed_dim,
            "depths": [len(stage.blocks) for stage in model.layers],
            "num_heads": [block.attn.num_heads for block in blocks],
        },
        "img_size": tuple(model.patch_embed.img_size),
        "patch_size": model.patch_embed.patch_size[0],
        "window_size": windows[0][0],
    }
    if len(set(windows)) > 1:  # timm shrinks the windows of small maps
        config["stage_cfgs"] = [{"block_cfgs": {"window_size": side}} for side, _ in windows]
    tensors = {key: merging(value) if ".downsample." in key else value for key, value in subject.tensors.items()}
    for name, module in model.named_modules():  # a plain buffer of timm's, a saved one of OpenMMLab's
        if (index := getattr(module, "relative_position_index", None)) is not None:
            tensors[f"{name}.relative_position_index"] = index.clone()
    renames = (
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
        (r"^layers\.", "stages."),
        (r"\.attn\.", ".attn.w_msa."),
        (r"^norm\.", f"norm{len(blocks) - 1}."),
        *MLP,
    )
    final = rearrange(subject.outputs["unpooled"], "b h w d -> b d h w")
    return Native(config, rename(tensors, renames), (final,))


def merging(value: Tensor) -> Tensor:
    """The last axis of a patch merging's tensor from timm's order (column, row, channel) to nn.Unfold's."""
    return rearrange(value, "... (w h c) -> ... (c h w)", w=2, h=2).contiguous()


def convnext(subject: Subject) -> Native | None:
    model = subject.model
    if type(model).__name__ != "ConvNeXt" or len(model.stages) != 4:
        return None
    norm_first = not isinstance(model.norm_pre, nn.Identity)  # the last map is normed, then pooled
    stages = [stage.blocks for stage in model.stages]
    block, grn = stages[0][0], any("grn" in key for key in subject.tensors)
    config = {
        "type": "ConvNeXt",
        "arch": {"depths": [len(s) for s in stages], "channels": [s[0].conv_dw.out_channels for s in stages]},
        "norm_cfg": {"type": "LN2d", "eps": block.norm.eps},
        "linear_pw_conv": isinstance(block.mlp.fc1, nn.Linear),
        "use_grn": grn,
        "layer_scale_init_value": 0.0 if block.gamma is None else 1e-6,
    }
    renames = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"\.conv_dw\.", ".depthwise_conv."),
        (r"\.mlp\.fc(\d)\.", r".pointwise_conv\1."),
        (r"\.mlp\.grn\.weight", ".grn.gamma"),
        (r"\.mlp\.grn\.bias", ".grn.beta"),
        (r"^(head\.norm|norm_pre)\.", f"norm{len(stages) - 1}."),
    )
    if norm_first:
        config["gap_before_final_norm"] = False
    plain = exact_gelu(block.mlp.act) and len(model.stem) == 2 and model.stem[0].stride == (4, 4)
    output = subject.outputs["unpooled" if norm_first else "pooled"]
    return Native(config, rename(subject.tensors, renames), (output,)) if plain else None


def exact_gelu(act: nn.Module) -> bool:
    """OpenMMLab's GELU is not the tanh approximation; timm's own class is the exact one too."""
    return type(act).__name__ == "GELU" and getattr(act, "approximate", "none") == "none"


def rename(tensors: dict[str, Tensor], renames: tuple[tuple[str, str | Callable], ...]) -> dict[str, Tensor]:
    """Every replacement on every key, in their order."""
    renamed = {}
    for key, value in tensors.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


FAMILIES = (resnet, vision_transformer, xcit, swin, convnext)


def native(subject: Subject) -> Native | None:
    """As one of mmpretrain's own classes, with the number of channels; None where none fits."""
    for family in FAMILIES:
        if (found := family(subject)) is not None:
            if subject.input_size[0] != 3:
                found.config["in_channels"] = subject.input_size[0]
            return found
    return None


def normed_map(subject: Subject) -> Tensor:
    """ConvNeXt's last map after its norm, which its classifier may have before or behind the pooling."""
    if not isinstance(subject.model.norm_pre, nn.Identity):
        return subject.outputs["unpooled"]
    with torch.no_grad():
        return subject.model.head.norm(subject.outputs["unpooled"])

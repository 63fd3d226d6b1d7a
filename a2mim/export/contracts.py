"""What each target's documentation asks of keys and shapes, written down apart from the code that maps keys to them.

Invariant: nothing here looks at an encoder; a contract is a function of the plain arguments that the target itself is
given. So a wrong map of keys cannot agree with it, and a file is checked where the target is not installed.

Sources: torchvision 0.28 and mmpretrain 1.2 as built (tests/export/test_contracts.py asks those that are installed);
detectron2's modeling/backbone/resnet.py.
"""

from collections.abc import Callable

from a2mim.export.check import describe_keys
from a2mim.wiring.timm_models import maps_on_meta, on_meta, shapes_of

Shapes = dict[str, tuple[int, ...]]

# torchvision's names, which are timm's -> (blocks of each stage, bottlenecks, groups, channels of a group at stage 1)
RESNETS = {
    "resnet18": ((2, 2, 2, 2), False, 1, 64),
    "resnet34": ((3, 4, 6, 3), False, 1, 64),
    "resnet50": ((3, 4, 6, 3), True, 1, 64),
    "resnet101": ((3, 4, 23, 3), True, 1, 64),
    "resnet152": ((3, 8, 36, 3), True, 1, 64),
    "resnext50_32x4d": ((3, 4, 6, 3), True, 32, 4),
    "resnext101_32x8d": ((3, 4, 23, 3), True, 32, 8),
    "resnext101_64x4d": ((3, 4, 23, 3), True, 64, 4),
    "wide_resnet50_2": ((3, 4, 6, 3), True, 1, 128),
    "wide_resnet101_2": ((3, 4, 23, 3), True, 1, 128),
}
# torchvision's children, without the pooling and the fc, by their places in a Sequential
ULTRALYTICS_CHILDREN = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


def of_timm(architecture: str, model_args: dict) -> Shapes:
    """timm is always there, so it is asked."""
    return shapes_of(on_meta(architecture, **model_args))


def of_timm_maps(architecture: str, model_args: dict, out_indices: list[int]) -> Shapes:
    """timm's features_only=True, without what lies behind the last of these maps."""
    return shapes_of(maps_on_meta(architecture, out_indices, model_args))


def of_torchvision(name: str, in_channels: int = 3) -> Shapes:
    """A ResNet without its fc."""
    shapes: Shapes = {"conv1.weight": (64, in_channels, 7, 7), **_batchnorm("bn1", 64)}
    for stage, place, convolutions, shortcut in resnet_blocks(name):
        at = f"layer{stage}.{place}"
        for i, shape in enumerate(convolutions, 1):
            shapes |= {f"{at}.conv{i}.weight": shape, **_batchnorm(f"{at}.bn{i}", shape[0])}
        if shortcut:
            shapes |= {f"{at}.downsample.0.weight": shortcut}
            shapes |= _batchnorm(f"{at}.downsample.1", shortcut[0])
    return shapes


def of_ultralytics(name: str) -> Shapes:
    """A BatchNorm2d, then its TorchVision module with unwrap=True and truncate=2."""
    shapes = _batchnorm("model.0", 3)
    for key, shape in of_torchvision(name).items():
        child, rest = key.split(".", 1)
        shapes[f"model.1.m.{ULTRALYTICS_CHILDREN[child]}.{rest}"] = shape
    return shapes


def of_detectron2(name: str) -> Shapes:
    """A backbone built by build_resnet_backbone, with any NORM that has running statistics."""
    shapes: Shapes = {"stem.conv1.weight": (64, 3, 7, 7), **_batchnorm("stem.conv1.norm", 64)}
    for stage, place, convolutions, shortcut in resnet_blocks(name):
        parts: Shapes = {f"conv{i}": shape for i, shape in enumerate(convolutions, 1)}
        for part, shape in (parts | ({"shortcut": shortcut} if shortcut else {})).items():
            at = f"res{stage + 1}.{place}.{part}"
            shapes |= {f"{at}.weight": shape, **_batchnorm(f"{at}.norm", shape[0])}
    return shapes


def resnet_blocks(name: str):
    """Of each block: stage from 1, place from 0, shapes of its convolutions, shape of its projection or None."""
    depths, bottleneck, groups, group_width = RESNETS[name]
    before = 64
    for stage, depth in enumerate(depths, 1):
        out = 64 * 2 ** (stage - 1) * (4 if bottleneck else 1)
        inner = groups * group_width * 2 ** (stage - 1) if bottleneck else out
        for place in range(depth):
            convolutions = [(inner, before, 3, 3), (out, inner, 3, 3)]
            if bottleneck:
                convolutions = [(inner, before, 1, 1), (inner, inner // groups, 3, 3), (out, inner, 1, 1)]
            yield stage, place, convolutions, (out, before, 1, 1) if before != out else None
            before = out


def _batchnorm(at: str, width: int) -> Shapes:
    shapes = {f"{at}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{at}.num_batches_tracked": ()}


def _layer(at: str, *shape: int) -> Shapes:
    """A linear layer, a convolution, or with one number a norm."""
    return {f"{at}.weight": shape, f"{at}.bias": shape[:1]}


def _mlp(at: str, width: int, hidden: int) -> Shapes:
    return _layer(f"{at}.ffn.layers.0.0", hidden, width) | _layer(f"{at}.ffn.layers.1", width, hidden)


def of_mm_resnet(depth: int, groups: int = 0, width_per_group: int = 0, in_channels: int = 3, **_) -> Shapes:
    """ResNet and ResNeXt."""
    name = f"resnext{depth}_{groups}x{width_per_group}d" if groups else f"resnet{depth}"
    return of_torchvision(name, in_channels)


def of_mm_vit(arch, img_size, patch_size, qkv_bias, out_type, final_norm, in_channels=3, **_) -> Shapes:
    """VisionTransformer with a class token."""
    width, hidden = arch["embed_dims"], arch["feedforward_channels"]
    tokens = (img_size[0] // patch_size) * (img_size[1] // patch_size) + 1
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, tokens, width)}
    shapes |= _layer("patch_embed.projection", width, in_channels, patch_size, patch_size)
    for i in range(arch["num_layers"]):
        at = f"layers.{i}"
        shapes |= _layer(f"{at}.ln1", width) | _layer(f"{at}.ln2", width) | _mlp(at, width, hidden)
        shapes |= _layer(f"{at}.attn.qkv", 3 * width, width) | _layer(f"{at}.attn.proj", width, width)
        if not qkv_bias:
            del shapes[f"{at}.attn.qkv.bias"]
    shapes |= _layer("ln1", width) if final_norm else {}
    return shapes | (_layer("ln2", width) if out_type == "avg_featmap" else {})


def of_mm_xcit(
    patch_size, embed_dims, depth, cls_attn_layers, num_heads, mlp_ratio, use_pos_embed, in_channels=3, **_
) -> Shapes:
    """XCiT with qkv_bias."""
    width, hidden = embed_dims, int(embed_dims * mlp_ratio)
    shapes: Shapes = {"cls_token": (1, 1, width)}
    before, steps = in_channels, {16: 4, 8: 3}[patch_size]
    for i in range(steps):
        out = width // 2 ** (steps - 1 - i)
        at = f"patch_embed.proj.{i}"
        shapes |= {f"{at}.conv.weight": (out, before, 3, 3), **_batchnorm(f"{at}.bn", out)}
        before = out
    if use_pos_embed:
        shapes |= _layer("pos_embed.token_projection.conv", width, 64, 1, 1)
    blocks = [f"xca_layers.{i}" for i in range(depth)] + [f"ca_layers.{i}" for i in range(cls_attn_layers)]
    for at in blocks:
        shapes |= {f"{at}.gamma1": (width,), f"{at}.gamma2": (width,), **_mlp(at, width, hidden)}
        for part in ("norm1", "norm2"):
            shapes |= _layer(f"{at}.{part}", width)
        shapes |= _layer(f"{at}.attn.proj", width, width)
    for at in blocks[:depth]:
        shapes |= {f"{at}.gamma3": (width,), f"{at}.attn.temperature": (num_heads, 1, 1)}
        shapes |= _layer(f"{at}.attn.qkv", 3 * width, width) | _layer(f"{at}.norm3", width)
        for part in ("conv1", "conv2"):
            shapes |= _layer(f"{at}.local_mp.{part}.conv", width, 1, 3, 3)
        shapes |= _batchnorm(f"{at}.local_mp.conv1.bn", width)
    for at in blocks[depth:]:
        for part in "qkv":
            shapes |= _layer(f"{at}.attn.{part}", width, width)
    return shapes | _layer("norm", width)


def of_mm_swin(arch, patch_size, window_size, stage_cfgs=None, in_channels=3, **_) -> Shapes:
    """SwinTransformer whose last map is normed; mmdet's and mmseg's have the same keys."""
    first, depths = arch["embed_dims"], arch["depths"]
    shapes = _layer("patch_embed.projection", first, in_channels, patch_size, patch_size)
    shapes |= _layer("patch_embed.norm", first)
    for stage, (depth, heads) in enumerate(zip(depths, arch["num_heads"], strict=True)):
        width = first * 2**stage
        side = stage_cfgs[stage]["block_cfgs"]["window_size"] if stage_cfgs else window_size
        for block in range(depth):
            at = f"stages.{stage}.blocks.{block}"
            shapes |= _layer(f"{at}.norm1", width) | _layer(f"{at}.norm2", width) | _mlp(at, width, 4 * width)
            at = f"{at}.attn.w_msa"
            shapes |= _layer(f"{at}.qkv", 3 * width, width) | _layer(f"{at}.proj", width, width)
            shapes[f"{at}.relative_position_bias_table"] = ((2 * side - 1) ** 2, heads)
            shapes[f"{at}.relative_position_index"] = (side**2, side**2)
        if stage < len(depths) - 1:
            shapes |= _layer(f"stages.{stage}.downsample.norm", 4 * width)
            shapes[f"stages.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
    return shapes | _layer(f"norm{len(depths) - 1}", width)


def of_mm_convnext(arch, linear_pw_conv, use_grn, layer_scale_init_value, in_channels=3, **_) -> Shapes:
    """ConvNeXt whose last map is normed."""
    widths, kernel = arch["channels"], () if linear_pw_conv else (1, 1)
    shapes = _layer("downsample_layers.0.0", widths[0], in_channels, 4, 4) | _layer("downsample_layers.0.1", widths[0])
    for stage, (depth, width) in enumerate(zip(arch["depths"], widths, strict=True)):
        if stage:
            shapes |= _layer(f"downsample_layers.{stage}.0", widths[stage - 1])
            shapes |= _layer(f"downsample_layers.{stage}.1", width, widths[stage - 1], 2, 2)
        for block in range(depth):
            at = f"stages.{stage}.{block}"
            shapes |= _layer(f"{at}.depthwise_conv", width, 1, 7, 7) | _layer(f"{at}.norm", width)
            shapes |= _layer(f"{at}.pointwise_conv1", 4 * width, width, *kernel)
            shapes |= _layer(f"{at}.pointwise_conv2", width, 4 * width, *kernel)
            shapes |= {f"{at}.grn.{part}": (4 * width,) for part in ("gamma", "beta") if use_grn}
            shapes |= {f"{at}.gamma": (width,)} if layer_scale_init_value else {}
    return shapes | _layer(f"norm{len(widths) - 1}", widths[-1])


def of_mm_timm(architecture: str, model_args: dict) -> Shapes:
    """mmpretrain's TIMMBackbone."""
    return {f"timm_model.{key}": shape for key, shape in of_timm(architecture, model_args).items()}


def of_mm_timm_maps(architecture: str, model_args: dict, out_indices: list[int]) -> Shapes:
    """mmpretrain's TIMMBackbone with features_only=True."""
    shapes = of_timm_maps(architecture, model_args, out_indices)
    return {f"timm_model.{key}": shape for key, shape in shapes.items()}


CONTRACTS: dict[str, Callable[..., Shapes]] = {
    "timm": of_timm,
    "torchvision": of_torchvision,
    "detectron2": of_detectron2,
    "ultralytics": of_ultralytics,
    "mmpretrain.ResNet": of_mm_resnet,
    "mmpretrain.ResNeXt": of_mm_resnet,
    "mmpretrain.VisionTransformer": of_mm_vit,
    "mmpretrain.XCiT": of_mm_xcit,
    "mmpretrain.SwinTransformer": of_mm_swin,
    "mmpretrain.ConvNeXt": of_mm_convnext,
    "mmpretrain.TIMMBackbone": of_mm_timm,
    "mmpretrain.TIMMBackbone with maps": of_mm_timm_maps,
    "mmpretrain.TimmClassifier": of_timm,
}


def check_contract(contract: tuple[str, dict] | None, tensors: dict[str, dict]) -> str:
    """What of the stated tensors (key -> {"shape": …}) is not what the contract asks for, in words; "" if nothing."""
    if contract is None:
        return ""
    name, arguments = contract
    try:
        asked = CONTRACTS[name](**arguments)
    except Exception as error:  # arguments in a file may be of any type
        return f"the contract of {name} in the receipt cannot be read ({type(error).__name__})"
    keys = {
        "missing": [key for key in asked if key not in tensors],
        "unexpected": [key for key in tensors if key not in asked],
        "of another shape": [k for k in asked if k in tensors and tuple(tensors[k]["shape"]) != tuple(asked[k])],
    }
    problem = describe_keys(keys)
    return f"the documented keys of {name} are not met: {problem}" if problem else ""

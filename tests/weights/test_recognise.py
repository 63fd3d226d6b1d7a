"""Other toolkits' weights under timm's names: the other toolkit's own network computes the same features."""

import argparse
import re

import pytest
import timm
import torch
import torchvision
from einops import rearrange
from timm.models import convnext, swin_transformer, xcit
from torch import nn

from a2mim.weights.converters import read_weights, recognise

SMALL_VIT = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 64}
SMALL_SWIN = {"embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4, "img_size": 64}
SMALL_CONVNEXT = {"depths": (1, 2, 1, 1), "dims": (8, 16, 32, 64)}


def randomise(network):
    """No parameter keeps a value that hides a mistake: no zero, no one, no LayerScale of 1e-6."""
    generator = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + (0.9 if value.ndim == 1 else -0.1))
    return network.eval()


def small(name, **arguments):
    return randomise(timm.create_model(name, num_classes=0, **arguments))


def loaded(found, name, **arguments):
    """timm's model with the recognised tensors, strictly."""
    model = timm.create_model(name, num_classes=0, **arguments).eval()
    model.load_state_dict(found.tensors)
    return model


def images(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_same(first, second):
    with torch.no_grad():
        first, second = first(images()), second(images())
    assert (first - second).abs().max() <= 1e-5 * second.abs().max()


def torchvision_networks():
    from torchvision.models.convnext import CNBlockConfig

    vit = torchvision.models.VisionTransformer(64, 16, 2, 2, 64, 256)
    bottlenecks = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
    swin = torchvision.models.SwinTransformer([4, 4], 32, [2, 2], [1, 2], [4, 4], stochastic_depth_prob=0.0)
    convnext = torchvision.models.ConvNeXt(
        [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 32, 2), CNBlockConfig(32, 64, 1), CNBlockConfig(64, None, 1)]
    )
    return {
        "resnet18": (torchvision.models.resnet18(), "fc", "resnet18", {}),
        "resnet50": (bottlenecks, "fc", "resnet50", {"layers": (1, 1, 1, 1)}),
        "vit": (vit, "heads", "vit_base_patch16_224", SMALL_VIT),
        "swin": (swin, "head", "swin_tiny_patch4_window7_224", SMALL_SWIN),
        "convnext": (convnext, "classifier.2", "convnext_atto", SMALL_CONVNEXT),
    }


@pytest.mark.parametrize("family", ["resnet18", "resnet50", "vit", "swin", "convnext"])
def test_torchvision_computes_what_timm_does_with_its_weights(family):
    network, head, name, arguments = torchvision_networks()[family]
    randomise(network)
    found = recognise(network.state_dict(), timm.create_model(name, num_classes=0, **arguments).state_dict())
    assert "torchvision" in found.form.title and set(found.left_out) >= {head.partition(".")[0]}
    network.set_submodule(head, nn.Identity())
    assert_same(loaded(found, name, **arguments), network)


# as mmpretrain 1.2.0 lists them (VisionTransformer, SwinTransformer, ConvNeXt, XCiT); {} is a number
MMPRETRAIN = {
    "vit": """
        patch_embed.projection = patch_embed.proj
        layers.{}.ln1 = blocks.{}.norm1 | layers.{}.attn.qkv = blocks.{}.attn.qkv
        layers.{}.attn.proj = blocks.{}.attn.proj | layers.{}.attn.gamma1.weight = blocks.{}.ls1.gamma
        layers.{}.ln2 = blocks.{}.norm2 | layers.{}.ffn.layers.0.0 = blocks.{}.mlp.fc1
        layers.{}.ffn.layers.1 = blocks.{}.mlp.fc2 | layers.{}.ffn.gamma2.weight = blocks.{}.ls2.gamma | ln1 = norm
        layers.{} = blocks.{}""",
    "swin": """
        patch_embed.projection = patch_embed.proj | patch_embed.norm = patch_embed.norm | norm3 = norm
        stages.{}.blocks.{}.norm1 = layers.{}.blocks.{}.norm1 | stages.{}.blocks.{}.norm2 = layers.{}.blocks.{}.norm2
        stages.{}.blocks.{}.attn.w_msa = layers.{}.blocks.{}.attn
        stages.{}.blocks.{}.ffn.layers.0.0 = layers.{}.blocks.{}.mlp.fc1
        stages.{}.blocks.{}.ffn.layers.1 = layers.{}.blocks.{}.mlp.fc2
        stages.0.downsample.norm = layers.1.downsample.norm
        stages.0.downsample.reduction = layers.1.downsample.reduction""",
    "convnext": """
        downsample_layers.0.0 = stem.0 | downsample_layers.0.1 = stem.1
        downsample_layers.{} = stages.{}.downsample
        stages.{}.{}.gamma = stages.{}.blocks.{}.gamma | stages.{}.{}.depthwise_conv = stages.{}.blocks.{}.conv_dw
        stages.{}.{}.norm = stages.{}.blocks.{}.norm | stages.{}.{}.pointwise_conv1 = stages.{}.blocks.{}.mlp.fc1
        stages.{}.{}.pointwise_conv2 = stages.{}.blocks.{}.mlp.fc2 | norm3 = head.norm""",
    "xcit": """
        patch_embed.proj.0.conv = patch_embed.proj.0.0 | patch_embed.proj.0.bn = patch_embed.proj.0.1
        patch_embed.proj.1.conv = patch_embed.proj.2.0 | patch_embed.proj.1.bn = patch_embed.proj.2.1
        patch_embed.proj.2.conv = patch_embed.proj.4.0 | patch_embed.proj.2.bn = patch_embed.proj.4.1
        patch_embed.proj.3.conv = patch_embed.proj.6.0 | patch_embed.proj.3.bn = patch_embed.proj.6.1
        pos_embed.token_projection.conv = pos_embed.token_projection
        xca_layers.{}.local_mp.conv1.conv = blocks.{}.local_mp.conv1
        xca_layers.{}.local_mp.conv1.bn = blocks.{}.local_mp.bn
        xca_layers.{}.local_mp.conv2.conv = blocks.{}.local_mp.conv2
        xca_layers.{}.ffn.layers.0.0 = blocks.{}.mlp.fc1 | xca_layers.{}.ffn.layers.1 = blocks.{}.mlp.fc2
        ca_layers.{}.ffn.layers.0.0 = cls_attn_blocks.{}.mlp.fc1
        ca_layers.{}.ffn.layers.1 = cls_attn_blocks.{}.mlp.fc2
        xca_layers.{} = blocks.{} | ca_layers.{} = cls_attn_blocks.{}""",
}


def as_mmpretrain(family, state):
    """timm's state dictionary under mmpretrain's names, by the literal table above: the longest name wins."""
    pairs = [pair.split("=") for line in MMPRETRAIN[family].splitlines() for pair in line.split("|") if "=" in pair]
    table = sorted(((ours.strip(), theirs.strip()) for theirs, ours in pairs), key=lambda pair: -len(pair[0]))
    renamed = {}
    for key, value in state.items():
        for ours, theirs in table:
            found = re.match(re.escape(ours).replace(r"\{\}", r"(\d+)") + r"(?=\.|$)", key)
            if found:
                key = theirs.format(*found.groups()) + key[found.end() :]
                break
        renamed[key] = value
    return renamed


MM_MODELS = {
    "vit": ("vit_base_patch16_224", SMALL_VIT | {"init_values": 0.1}),
    "convnext": ("convnext_atto", SMALL_CONVNEXT | {"conv_mlp": False}),
    "xcit": ("xcit_nano_12_p16_224", {"depth": 1, "embed_dim": 64, "num_heads": 2}),
}


@pytest.mark.parametrize("family", MM_MODELS)
def test_mmpretrain_checkpoints_come_back_under_timms_names(family):
    name, arguments = MM_MODELS[family]
    model = small(name, **arguments)
    state = {f"backbone.{key}": value for key, value in as_mmpretrain(family, model.state_dict()).items()}
    found = recognise({"state_dict": state | {"head.fc.weight": torch.zeros(1)}, "meta": {}}, model.state_dict())
    assert "mmpretrain" in found.form.title and found.where == "state_dict / backbone"
    assert found.left_out == {"head": 1} and found.pixels["mean"] == (0.485, 0.456, 0.406)
    assert_same(loaded(found, name, **arguments), model)


def test_swins_merging_is_reordered_as_nn_unfold_orders_it_in_mmpretrain():
    name = "swin_tiny_patch4_window7_224"
    model = small(name, **SMALL_SWIN)
    merging = model.layers[1].downsample
    order = torch.arange(4 * 32).reshape(2, 2, 32)  # timm's place of (column, row, channel)
    unfolded = rearrange(order, "w h c -> (c h w)")
    state = as_mmpretrain("swin", model.state_dict())
    for key in ("norm.weight", "norm.bias", "reduction.weight"):
        state[f"stages.0.downsample.{key}"] = state[f"stages.0.downsample.{key}"][..., unfolded]
    index = {"stages.0.blocks.0.attn.w_msa.relative_position_index": torch.zeros(16, 16)}
    found = recognise(state | index, model.state_dict())
    assert found.left_out == {"relative_position_index": 1}
    assert_same(loaded(found, name, **SMALL_SWIN), model)

    x = torch.randn(2, 32, 8, 8)  # mmpretrain's own way: unfold, norm, reduce
    patches = nn.functional.unfold(x, 2, stride=2).transpose(1, 2)
    keys = [f"stages.0.downsample.{key}" for key in ("norm.weight", "norm.bias", "reduction.weight")]
    normed = nn.functional.layer_norm(patches, (128,), state[keys[0]], state[keys[1]])
    with torch.no_grad():
        ours = merging(rearrange(x, "b c h w -> b h w c")).flatten(1, 2)
    torch.testing.assert_close(nn.functional.linear(normed, state[keys[2]]), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # mmcv's, about operators that mmcv-lite leaves out, and its XCiT
def test_mmpretrains_own_networks_compute_the_same():
    models = pytest.importorskip("mmpretrain.models")
    vit = {"embed_dims": 64, "num_layers": 2, "num_heads": 2, "feedforward_channels": 256}
    swin = {"embed_dims": 32, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    timm_swin = {"embed_dim": 32, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 2, "img_size": 64}
    xcit = {"patch_size": 16, "embed_dims": 64, "depth": 1, "num_heads": 2, "mlp_ratio": 4, "qkv_bias": True}
    xcit |= {"layer_scale_init_value": 1.0, "tokens_norm": False}
    rows = {
        "vit": (
            models.VisionTransformer(vit, 64, layer_scale_init_value=0.1),
            *("vit_base_patch16_224", SMALL_VIT | {"init_values": 0.1}),
        ),
        "swin": (models.SwinTransformer(swin, 64, window_size=2), "swin_tiny_patch4_window7_224", timm_swin),
        "convnext": (models.ConvNeXt("atto"), "convnext_atto", {}),
        "xcit": (models.XCiT(**xcit), "xcit_nano_12_p16_224", {"depth": 1, "embed_dim": 64, "num_heads": 2}),
        "resnet": (models.ResNet(18), "resnet18", {}),
    }
    for family, (network, name, arguments) in rows.items():
        randomise(network)
        found = recognise(network.state_dict(), timm.create_model(name, num_classes=0, **arguments).state_dict())
        model = loaded(found, name, **arguments)
        with torch.no_grad():
            output, ours = network(images())[-1], model(images())
        output = output.mean((2, 3)) if output.ndim == 4 else output
        assert (output - ours).abs().max() <= 1e-5 * ours.abs().max(), family


def test_what_openmixup_releases_of_a2mim_is_a_beit_with_position_embeddings():
    # its ViT: relative positions with q and v biases as BEiT has them, LayerScale, absolute positions (SimMIMViT)
    arguments = SMALL_VIT | {"use_abs_pos_emb": True}
    model = small("beit_base_patch16_224", **arguments)
    state = {f"backbone.{key}": value for key, value in as_mmpretrain("vit", model.state_dict()).items()}
    state["backbone.layers.0.attn.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    state |= {"backbone.mask_token": torch.zeros(1, 1, 64), "neck.decoder.0.weight": torch.zeros(1)}
    assert "backbone.layers.1.attn.q_bias" in state and "backbone.layers.1.gamma_1" in state
    found = recognise({"meta": {"epoch": 800}, "state_dict": state, "optimizer": {}}, model.state_dict())
    assert found.form.title == "a ViT of mmpretrain or OpenMixup" and found.masked
    assert found.left_out == {"neck": 1, "relative_position_index": 1, "mask_token": 1}
    assert_same(loaded(found, "beit_base_patch16_224", **arguments), model)


def test_a_layer_scale_of_openmixup_without_relative_positions_is_timms():
    arguments = SMALL_VIT | {"init_values": 0.1}
    model = small("vit_base_patch16_224", **arguments)
    state = as_mmpretrain("vit", model.state_dict())
    state = {
        k.replace("attn.gamma1.weight", "gamma_1").replace("ffn.gamma2.weight", "gamma_2"): v for k, v in state.items()
    }
    assert "layers.0.gamma_1" in state
    assert_same(loaded(recognise(state), "vit_base_patch16_224", **arguments), model)


def test_openmixups_resnet_is_timms_beside_its_mask_token():
    model = small("resnet18")
    state = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    state |= {"backbone.mask_token": torch.zeros(1, 256, 1, 1), "backbone.mask_gamma": torch.zeros(1, 256, 1, 1)}
    found = recognise({"state_dict": state}, model.state_dict())
    assert found.masked and found.left_out == {"mask_token": 1, "mask_gamma": 1}
    assert_same(loaded(found, "resnet18"), model)


def test_dinos_checkpoint_gives_its_teacher_without_the_head(tmp_path):
    teacher, student = (
        small("vit_base_patch16_224", **SMALL_VIT),
        timm.create_model("vit_base_patch16_224", **SMALL_VIT),
    )
    head = {"head.mlp.0.weight": torch.zeros(2, 2)}
    content = {
        "student": {f"module.backbone.{k}": v for k, v in student.state_dict().items()},
        "teacher": {f"backbone.{k}": v for k, v in teacher.state_dict().items()} | head,
        "args": argparse.Namespace(arch="vit_small", lr=0.0005),
        "epoch": 100,
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    found = recognise(read_weights(tmp_path / "checkpoint.pth"), teacher.state_dict())
    assert found.where == "teacher / backbone" and found.left_out == {"head": 1}
    assert found.pixels == {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}
    assert_same(loaded(found, "vit_base_patch16_224", **SMALL_VIT), teacher)


def authors_names(family, model):
    """The authors' own files, as timm's filters of them expect: {"model": …}."""
    state = dict(model.state_dict())
    if family == "xcit":
        for i in range(2):
            for part in ("weight", "bias"):
                parts = [state.pop(f"cls_attn_blocks.{i}.attn.{x}.{part}") for x in "qkv"]
                state[f"cls_attn_blocks.{i}.attn.qkv.{part}"] = torch.cat(parts)
        return {key.replace("pos_embed.", "pos_embeder."): value for key, value in state.items()}
    if family == "swin":
        return {key.replace("layers.1.downsample", "layers.0.downsample"): value for key, value in state.items()}
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key).replace(".blocks.", ".")
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace("head.norm", "norm")
        renamed[key] = value
    return renamed


@pytest.mark.parametrize(
    ("family", "name", "arguments", "reference"),
    [
        ("xcit", "xcit_nano_12_p16_224", {"depth": 1, "embed_dim": 64, "num_heads": 2}, xcit),
        ("swin", "swin_tiny_patch4_window7_224", SMALL_SWIN, swin_transformer),
        ("convnext", "convnext_atto", SMALL_CONVNEXT | {"conv_mlp": False}, convnext),
    ],
)
def test_the_authors_own_names_are_read_as_timm_reads_them(family, name, arguments, reference):
    model = small(name, **arguments)
    state = authors_names(family, model)
    found = recognise({"model": state}, model.state_dict())
    assert "authors" in found.form.title
    expected = reference.checkpoint_filter_fn({"model": dict(state)}, model)
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[key], expected[key]) for key in expected)
    assert_same(loaded(found, name, **arguments), model)


def test_timms_own_names_are_found_in_any_wrapping_and_lose_their_classifier():
    model = small("regnety_002")
    own = set(model.state_dict())
    state = model.state_dict() | {"head.fc.weight": torch.zeros(3, 368)}
    for wrapped in (
        state,
        {"module." + k: v for k, v in state.items()},
        {"epoch": 3, "model": {"_orig_mod." + k: v for k, v in state.items()}},
    ):
        found = recognise(wrapped, model.state_dict())
        assert found.form.title == "the architecture's own names" and found.left_out == {"head": 1}
        assert found.tensors.keys() == own and found.pixels is None


def test_what_is_not_recognised_is_nothing():
    assert recognise({"a.weight": torch.zeros(2)}) is None
    assert recognise({"a.weight": torch.zeros(2)}, {"b.weight": torch.zeros(2)}) is None
    assert recognise({"epoch": 3}) is None and recognise([torch.zeros(2)]) is None


def test_a_pickle_that_needs_code_is_refused_with_the_name_of_what_it_needs(tmp_path):
    torch.save({"state_dict": {}, "hook": re.compile("a")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"holds more than tensors and plain values \(re\._compile\)") as caught:
        read_weights(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_torch_saves_old_format_and_a_broken_file(tmp_path):
    torch.save({"conv1.weight": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "old.pth")["conv1.weight"], torch.ones(2))
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(ValueError, match=rf"{name} cannot be read") as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)

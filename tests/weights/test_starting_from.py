"""Encoders from other toolkits' files, from the words a user types to the features; what is not whole is refused."""

import json
import os
import re
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from a2mim.encoder import MaskedEncoder
from a2mim.weights.loading import LoadReport, describe_report, initialise, load_encoder, load_reported, read_source

SIZE = 64


def images(channels=3):
    return torch.randn(2, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def same(first, second, channels=3):
    with torch.no_grad():
        first, second = first.eval()(images(channels)), second.eval()(images(channels))
    return (first - second).abs().max() <= 1e-5 * second.abs().max()


@pytest.fixture(scope="module")
def network():
    """torchvision's ResNet-18 with ten classes, as its training script leaves it."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.fixture
def file(network, tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"model": network.state_dict(), "epoch": 90}, path)
    return path


def headless(network):
    copy = torchvision.models.resnet18()
    copy.fc = torch.nn.Identity()
    copy.load_state_dict({key: value for key, value in network.state_dict().items() if not key.startswith("fc.")})
    return copy


def test_a_name_and_a_file_give_the_encoder_and_a_report(network, file):
    model, preprocessing, report = load_reported(f"resnet18:{file}")
    assert same(model, headless(network)) and not model.training
    assert preprocessing["mean"] == [0.485, 0.456, 0.406] and preprocessing["img_size"] == [224, 224]
    assert report.as_dict() == {
        "source": str(file),
        "recognised": "a ResNet in the names of torchvision, timm and mmpretrain, in model",
        "architecture": "resnet18",
        "of": 120,
        "loaded": 120,
        "missing": [],
        "unexpected": [],
        "of another shape": [],
        "left_out": {"fc": 2},
        "partial": False,
    }
    plain = json.loads(json.dumps(report.as_dict()))
    assert LoadReport.from_dict(plain) == report and describe_report(plain) == describe_report(report)
    assert describe_report(report) == (
        "120 of 120 tensors of resnet18 from a ResNet in the names of torchvision, timm and mmpretrain, in model;"
        " left out: 2 of fc"
    )


def test_a_bare_file_is_recognised_and_its_architecture_asked_for(file):
    with pytest.raises(
        ValueError, match=r"holds the weights of a ResNet .* e\.g\. resnet18:.*resnet\.pth\.$"
    ) as caught:
        load_encoder(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("layer1.0.bn1.bias"), r"1 missing \(layer1.0.bn1.bias\)"),
        (lambda s: s.update({"layer5.0.conv1.weight": torch.zeros(1)}), r"1 unexpected \(layer5.0.conv1.weight\)"),
        (lambda s: s.update({"layer1.0.bn1.bias": torch.zeros(3)}), r"1 of another shape \(layer1.0.bn1.bias\)"),
    ],
)
def test_a_partial_file_is_refused_unless_asked_for_and_then_recorded(network, tmp_path, change, words):
    state = dict(network.state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=words) as caught:
        load_encoder(f"resnet18:{tmp_path / 'w.pth'}")
    assert "\n" not in str(caught.value)
    model, _, report = load_reported(f"resnet18:{tmp_path / 'w.pth'}", allow_partial=True)
    assert report["partial"] and words.split(r" \(")[0][2:] in describe_report(report)
    assert report["loaded"] == 120 - len(report["missing"]) - len(report["of another shape"])
    assert torch.equal(model.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    assert torch.isfinite(model(images())).all()


def test_nothing_at_all_is_never_a_partial_load(tmp_path):
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="keys are not recognised as those of resnet18"):
        load_encoder(f"resnet18:{tmp_path / 'w.pth'}", allow_partial=True)
    with pytest.raises(ValueError, match="is not a checkpoint of a2mim, and its keys are not recognised"):
        load_encoder(tmp_path / "w.pth")


def test_another_architectures_file_and_a_wrong_name_are_refused(file):
    with pytest.raises(ValueError, match="not those of resnet34, of 216 tensors: 96 missing"):
        load_encoder(f"resnet34:{file}")
    with pytest.raises(ValueError, match=r"'resnet_18' is not a model that timm knows.*nearest names: .*resnet18"):
        load_encoder(f"resnet_18:{file}")
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        load_encoder("resnet18:none.pth")


def test_files_from_before_batch_counters_and_in_half_precision_are_whole(network, tmp_path):
    state = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "w.safetensors")
    model, _ = load_encoder(f"resnet18:{tmp_path / 'w.safetensors'}")
    assert torch.equal(model.conv1.weight, network.conv1.weight.half().float())
    assert model.conv1.weight.dtype == torch.float32


def test_channels_and_image_size_follow_from_the_file(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, in_chans=5, num_classes=7)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    found = read_source(f"vit_tiny_patch16_224:{tmp_path / 'w.pth'}")
    assert found.model_args == {"in_chans": 5, "img_size": [48, 48]}
    assert found.left_out == {"head": 2} and found.preprocessing.img_size == (48, 48)
    assert found.preprocessing.channels == 5
    loaded, _ = load_encoder(f"vit_tiny_patch16_224:{tmp_path / 'w.pth'}")
    assert torch.equal(loaded.pos_embed, model.pos_embed)


def test_a_head_that_norms_after_pooling_is_seen(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", global_pool="avg", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    loaded, _ = load_encoder(f"vit_tiny_patch16_224:{tmp_path / 'w.pth'}", img_size=SIZE)
    assert loaded.global_pool == "avg" and torch.equal(loaded.fc_norm.weight, model.fc_norm.weight)


def test_masked_statistics_are_known_where_a_mask_token_tells(network, file, tmp_path):
    state = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state | {"backbone.mask_token": torch.zeros(1)}}, tmp_path / "w.pth")
    assert not read_source(f"resnet18:{tmp_path / 'w.pth'}").calibrated
    assert read_source(f"resnet18:{file}").calibrated


def test_an_encoder_that_stands_is_initialised_at_its_own_size_and_channels(tmp_path, network, file):
    encoder = MaskedEncoder("resnet18", img_size=SIZE, in_chans=1)
    report = initialise(encoder.model, encoder.model_args, file)  # the recipe names the architecture
    assert report["loaded"] == 120
    expected = network.conv1.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(encoder.model.conv1.weight, expected)
    encoder = MaskedEncoder("vit_tiny_patch16_224", img_size=32)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    initialise(encoder.model, encoder.model_args, tmp_path / "vit.pth")
    assert torch.equal(encoder.model.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    assert encoder.model.pos_embed.shape[1] == 1 + 4
    with pytest.raises(ValueError, match="holds the weights of resnet18, not of vit_tiny_patch16_224"):
        initialise(encoder.model, encoder.model_args, f"resnet18:{file}")
    with pytest.raises(ValueError, match="write vit_tiny_patch16_224:pretrained to start from timm's"):
        initialise(encoder.model, encoder.model_args, "vit_tiny_patch16_224")


PUBLISHED = """
import a2mim, json
from a2mim.weights.loading import load_reported
model, preprocessing, report = load_reported("resnet18.a1_in1k:pretrained")
assert float(model.bn1.weight.detach().sum()) == 64 * 3.0
print(report["recognised"], report["loaded"], preprocessing["interpolation"])
try:
    load_reported("resnet34.a1_in1k:pretrained")
except OSError as error:
    print(error)
try:
    load_reported("xvit_small_p16_224:pretrained")
except ValueError as error:
    print(error)
"""


def test_timms_published_weights_come_from_its_cache_or_are_one_sentence(tmp_path):
    # the cache as huggingface_hub lays it out
    repository = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    snapshot = repository / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    state = timm.create_model("resnet18", num_classes=1000).state_dict()
    state["bn1.weight"] = torch.full((64,), 3.0)
    save_file(state, snapshot / "model.safetensors")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", PUBLISHED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "timm's published weights (a1_in1k) 120 bicubic"
    assert lines[1].startswith("timm's weights for resnet34.a1_in1k are not in its cache and could not be fetched (")
    assert lines[2].startswith("timm has no weights for xvit_small_p16_224 (")


def transformers_folder(tmp_path, model, preprocessor=None):
    model.save_pretrained(tmp_path)
    if preprocessor:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return tmp_path


def jitter(model):
    generator = torch.Generator().manual_seed(0)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + (0.9 if value.ndim == 1 else -0.1))
    return model.eval()


def test_a_transformers_vit_folder_names_its_own_architecture(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        image_size=SIZE,
        patch_size=16,
        layer_norm_eps=1e-6,
    )
    model = jitter(transformers.ViTModel(config))
    pixels = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3, "resample": 3}
    loaded, preprocessing, report = load_reported(transformers_folder(tmp_path, model, pixels))
    with torch.no_grad():
        expected = model(images()).last_hidden_state
        found = loaded.forward_features(images())
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert preprocessing == {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5] * 3,
        "img_size": [64, 64],
        "interpolation": "bicubic",
    }
    assert report["left_out"] == {"pooler": 2} and report["recognised"] == "a ViT of transformers"
    torch.save(model.state_dict(), tmp_path / "state.pth")  # transformers 5 names the modules anew in memory
    with pytest.raises(ValueError, match="those of vit_tiny_patch16_224"):  # the right form, another width
        load_encoder(f"vit_tiny_patch16_224:{tmp_path / 'state.pth'}")


def test_a_transformers_vit_file_of_a_usual_size_goes_by_its_name(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=SIZE,
        layer_norm_eps=1e-6,
    )
    model = jitter(transformers.ViTForImageClassification(config))
    torch.save(model.state_dict(), tmp_path / "state.pth")
    for source in (f"vit_tiny_patch16_224:{tmp_path / 'state.pth'}", transformers_folder(tmp_path / "folder", model)):
        loaded, preprocessing = load_encoder(source)
        with torch.no_grad():
            expected = model.vit(images()).last_hidden_state
            found = loaded.forward_features(images())
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert preprocessing["mean"] == [0.5] * 3
    assert read_source(tmp_path / "folder").name == "vit_tiny_patch16_224"


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_a_transformers_resnet_computes_the_same(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    sizes = {"basic": ([64, 128, 256, 512], [2, 2, 2, 2]), "bottleneck": ([256, 512, 1024, 2048], [3, 4, 6, 3])}
    widths, depths = sizes[kind]
    config = transformers.ResNetConfig(layer_type=kind, hidden_sizes=widths, depths=depths)
    model = transformers.ResNetModel(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    loaded, _, report = load_reported(transformers_folder(tmp_path, model.eval()))
    with torch.no_grad():
        expected, found = model(images()).pooler_output.flatten(1), loaded(images())
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert report["architecture"] == {"basic": "resnet18", "bottleneck": "resnet50"}[kind]
    odd = json.loads((tmp_path / "config.json").read_text()) | {"downsample_in_bottleneck": True}
    (tmp_path / "config.json").write_text(json.dumps(odd))
    with pytest.raises(ValueError, match=r"downsample_in_bottleneck is none of timm's resnets\.$"):
        load_encoder(tmp_path)


def test_a_timm_wrapper_of_transformers_is_timms_own(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(architecture="resnet18", model_args={"in_chans": 4})
    model = transformers.TimmWrapperModel(config).eval()
    loaded, preprocessing = load_encoder(transformers_folder(tmp_path, model))
    assert len(preprocessing["mean"]) == 4
    with torch.no_grad():
        expected, found = model(images(4)).pooler_output, loaded(images(4))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_transformers_type_that_is_not_read_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="type 'bert': of transformers, vit, resnet, timm_wrapper are read"):
        load_encoder(tmp_path)


def test_openmixups_a2mim_vit_has_its_norm_before_the_pooling(tmp_path):
    torch.manual_seed(0)
    arguments = {"depth": 1, "img_size": SIZE, "use_abs_pos_emb": True, "init_values": 0.1, "global_pool": "token"}
    model = timm.create_model("beit_base_patch16_224", num_classes=0, **arguments)
    torch.nn.init.normal_(model.norm.weight)
    state = {re.sub(r"^blocks\.0\.", "layers.0.", key): value for key, value in model.state_dict().items()}
    renames = ((r"^patch_embed\.proj", "patch_embed.projection"), (r"\.norm([12])\.", r".ln\1."), (r"^norm\.", "ln1."))
    renames += ((r"\.mlp\.fc1\.", ".ffn.layers.0.0."), (r"\.mlp\.fc2\.", ".ffn.layers.1."))
    for pattern, name in renames:
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    state = {f"backbone.{key}": value for key, value in state.items()} | {"backbone.mask_token": torch.zeros(1, 1, 768)}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    found = read_source(f"beit_base_patch16_224:{tmp_path / 'w.pth'}")
    assert found.model_args["global_pool"] == "token" and found.model_args["use_abs_pos_emb"]
    assert torch.equal(found.tensors["norm.weight"], model.norm.weight)
    assert found.preprocessing.mean == (0.485, 0.456, 0.406)


def test_crossvit_as_its_authors_save_it(tmp_path):
    model = timm.create_model("crossvit_9_240", num_classes=0)
    own = model.state_dict()
    state = {re.sub(r"^(pos_embed|cls_token)_(\d)$", r"\1.\2", key): value for key, value in own.items()}
    torch.save({"model": state | {"head.0.weight": torch.zeros(3, 128)}}, tmp_path / "w.pth")
    got, preprocessing, report = load_reported(f"crossvit_9_240:{tmp_path / 'w.pth'}")
    assert all(torch.equal(value, own[key]) for key, value in got.state_dict().items())
    assert "CrossViT in its authors' names" in str(report) and preprocessing["interpolation"] == "bicubic"


def sparse(name, prefix="sparse_encoder.sp_cnn."):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0)
    return model, {f"{prefix}{key}": value for key, value in model.state_dict().items()}


def test_spark_s_encoder_is_found_behind_its_sparse_wrapper(tmp_path):
    model, state = sparse("resnet10t")
    others = {"dense_decoder.proj.weight": torch.zeros(3), "mask_tokens.0": torch.zeros(1, 4, 1, 1)}
    others |= {"densify_norms.0.weight": torch.zeros(4), "imn_m": torch.zeros(1, 3, 1, 1)}
    torch.save({"module": state | others, "is_pretrain": True}, tmp_path / "w.pth")
    found = read_source(f"resnet10t:{tmp_path / 'w.pth'}")
    assert torch.equal(found.tensors["layer1.0.conv1.weight"], model.layer1[0].conv1.weight)
    assert not found.calibrated  # its BatchNorm has seen visible positions only
    assert not load_reported(f"resnet10t:{tmp_path / 'w.pth'}")[2].partial


def fcmae(model, kernels):
    """A ConvNeXt V2 in its authors' names, without its final norm, with sparse convolutions if `kernels`."""
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith("head."):
            continue
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", key)
        key = key.replace(".mlp.fc", ".pwconv").replace(".conv_dw.", ".dwconv.")
        key = key.replace(".mlp.grn.weight", ".grn.gamma").replace(".mlp.grn.bias", ".grn.beta")
        if kernels and key.endswith("dwconv.weight"):  # the reference reads (k, c) back as (c, 1, w, h), transposed
            key, value = key.replace("weight", "kernel"), value.flatten(2)[:, 0].T.clone()
            side = int(len(value) ** 0.5)
            value = value.view(side, side, -1).transpose(0, 1).reshape(side * side, -1)
        elif kernels and re.fullmatch(r"downsample_layers\.[123]\.1\.weight", key):
            key = key.replace("weight", "kernel")
            value = value.permute(3, 2, 1, 0).flatten(0, 1).clone()
        elif kernels and "pwconv" in key:
            key = re.sub(r"pwconv(\d)\.", r"pwconv\1.linear.", key)
        elif kernels and re.search(r"\.norm\.|downsample_layers\.[123]\.0\.", key):
            key = re.sub(r"\.(weight|bias)$", r".ln.\1", key)
        if kernels and "dwconv.bias" in key:
            value = value[None]
        if "grn" in key:
            value = value.reshape(1, -1) if kernels else value.reshape(1, 1, 1, -1)
        state[f"encoder.{key}" if kernels else key] = value
    extra = {"mask_token": torch.zeros(1, 4, 1, 1), "proj.weight": torch.zeros(4, 4, 1, 1), "pred.bias": torch.zeros(4)}
    return {"model": state | extra | {"decoder.0.norm.weight": torch.zeros(4)}}


@pytest.mark.parametrize("kernels", [False, True])
def test_fcmae_s_convnext_has_no_final_norm(tmp_path, kernels):
    torch.manual_seed(0)
    model = timm.create_model("convnextv2_atto", num_classes=0)
    for value in model.state_dict().values():
        value.normal_()
    with torch.no_grad():
        model.head.norm.weight.fill_(1)
        model.head.norm.bias.zero_()
    torch.save(fcmae(model, kernels), tmp_path / "w.pth")
    got, _, report = load_reported(f"convnextv2_atto:{tmp_path / 'w.pth'}")
    wrong = [key for key, value in model.state_dict().items() if not torch.equal(value, got.state_dict()[key])]
    assert wrong == [] and "no final norm" in str(report)


def test_averaged_weights_come_before_raw_ones_and_are_said(tmp_path):
    model = timm.create_model("resnet10t", num_classes=0)
    raw = model.state_dict()
    averaged = {key: value + 1 for key, value in raw.items()}
    for names in (("state_dict", "state_dict_ema"), ("model", "model_ema")):
        torch.save(dict(zip(names, (raw, averaged), strict=True)), tmp_path / "w.pth")
        got, _, report = load_reported(f"resnet10t:{tmp_path / 'w.pth'}")
        assert torch.equal(got.layer1[0].conv1.weight, averaged["layer1.0.conv1.weight"])
        assert f"{names[1]} (averaged weights)" in str(report)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state},  # MAE, fine-tuned or not
        lambda state: {"state_dict": {f"module.base_encoder.{key}": value for key, value in state.items()}},  # MoCo v3
        lambda state: {"state_dict": {f"module.momentum_encoder.{key}": value for key, value in state.items()}},
    ],
)
def test_vits_of_toolkits_that_train_with_imagenet_s_mean_get_it(tmp_path, wrap):
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    torch.save(wrap(state | {"head.weight": torch.zeros(3, 192)}), tmp_path / "w.pth")
    _, preprocessing, report = load_reported(f"vit_tiny_patch16_224:{tmp_path / 'w.pth'}")
    assert preprocessing["mean"] == [0.485, 0.456, 0.406] and "says nothing" not in str(report)


def test_a_vit_that_says_nothing_of_its_mean_is_told_which_one_is_taken(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    torch.save(state, tmp_path / "w.pth")
    _, preprocessing, report = load_reported(f"vit_tiny_patch16_224:{tmp_path / 'w.pth'}")
    assert preprocessing["mean"] == [0.5] * 3
    assert "does not state mean and deviation, so those of vit_tiny_patch16_224 are used (mean 0.5" in str(report)


def test_i_jepa_dinov2_and_lightly_files(tmp_path):
    free = timm.create_model("vit_tiny_patch16_224", num_classes=0, class_token=False, global_pool="avg", fc_norm=False)
    state = {f"module.{key}": value for key, value in free.state_dict().items()}
    torch.save({"encoder": {}, "target_encoder": state, "predictor": {}}, tmp_path / "w.pth")
    got, preprocessing, _ = load_reported(f"vit_tiny_patch16_224:{tmp_path / 'w.pth'}")
    assert torch.equal(got.blocks[3].attn.qkv.weight, free.blocks[3].attn.qkv.weight)
    assert got.num_prefix_tokens == 0 and preprocessing["mean"] == [0.485, 0.456, 0.406]

    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    pattern = re.compile(r"^blocks\.(\d+)\.")
    chunked = {pattern.sub(lambda m: f"blocks.{int(m[1]) // 6}.{m[1]}.", k): v for k, v in whole.items()}
    both = {f"teacher.backbone.{key}": value for key, value in chunked.items()}
    both |= {f"student.backbone.{key}": value + 1 for key, value in chunked.items()}
    torch.save({"model": both, "iteration": 3}, tmp_path / "w.pth")
    got, _, report = load_reported(f"vit_tiny_patch16_224:{tmp_path / 'w.pth'}")
    assert torch.equal(got.blocks[7].attn.qkv.weight, whole["blocks.7.attn.qkv.weight"])
    assert "model / teacher / backbone" in str(report)

    plain = timm.create_model("resnet18", num_classes=0).state_dict()
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    parts = {f"backbone.{numbers[k.partition('.')[0]]}.{k.partition('.')[2]}": v for k, v in plain.items()}
    torch.save({"state_dict": parts | {"projection_head.layers.0.weight": torch.zeros(2, 2)}}, tmp_path / "w.pth")
    got, _, _ = load_reported(f"resnet18:{tmp_path / 'w.pth'}")
    assert torch.equal(got.layer4[1].conv2.weight, plain["layer4.1.conv2.weight"])


def test_a_convnext_file_with_its_norm_on_either_side_loads(tmp_path):
    small = {"depths": (1, 1, 1, 1)}  # as a recipe would say it
    first = timm.create_model("convnext_atto", num_classes=0, head_norm_first=True, **small)
    behind = timm.create_model("convnext_atto", num_classes=0, **small)
    for model in (first, behind):
        for value in model.state_dict().values():
            value.normal_()
        torch.save(model.state_dict(), tmp_path / "w.pth")
        for before in (True, False):
            model_args = small | {"head_norm_first": before}
            other = MaskedEncoder("convnext_atto", img_size=SIZE, model_args=model_args)
            initialise(other.model, other.model_args, f"{tmp_path / 'w.pth'}")
            norm = other.model.norm_pre if before else other.model.head.norm
            given = model.norm_pre if model is first else model.head.norm
            assert torch.equal(norm.weight, given.weight) and torch.equal(norm.bias, given.bias)

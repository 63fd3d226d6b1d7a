"""Layer decay, mixing and erasing do what the protocols say, on every kind of backbone."""

import random

import numpy as np
import pytest
import torch

import a2mim  # noqa: F401  before timm: it mends torchvision

# isort: split
import timm

from a2mim.engine.classifier import Classifier, put_classifier
from a2mim.engine.evaluating import rank_of_label
from a2mim.engine.finetune_settings import ClassLoss, FinetuneOptimizer, FinetuneSchedule, Head, Mix
from a2mim.engine.mixing import Mixing
from a2mim.engine.optim import build_layered_optimizer, build_schedule, layer_groups

CHOSEN = {"pooling": "default", "norm": "default", "head_init_std": 0.0}
# model: (L, {parameter: its layer}); the layers are counted by hand in the architecture
LAYERS = {
    "vit_tiny_patch16_224": (
        12,
        {"cls_token": 0, "pos_embed": 0, "patch_embed.proj.weight": 0, "blocks.0.attn.qkv.weight": 1}
        | {"blocks.11.mlp.fc2.bias": 12, "head.weight": 13},
    ),
    "xcit_nano_12_p16_224": (
        14,
        {"patch_embed.proj.0.0.weight": 0, "blocks.0.attn.qkv.weight": 1, "blocks.11.norm1.bias": 12}
        | {"cls_attn_blocks.1.mlp.fc1.weight": 14, "head.bias": 15},
    ),
    "resnet50": (
        6,  # SparK's list
        {"conv1.weight": 0, "bn1.weight": 0, "layer1.2.conv1.weight": 1, "layer2.1.conv1.weight": 2}
        | {"layer2.2.conv1.weight": 3, "layer3.2.bn3.weight": 4, "layer3.3.conv1.weight": 5}
        | {"layer4.0.downsample.0.weight": 6, "layer4.2.bn3.weight": 6, "fc.weight": 7},
    ),
    "resnet26": (
        8,  # not on SparK's list: timm's
        {"conv1.weight": 0, "layer1.0.conv1.weight": 1, "layer2.0.conv1.weight": 3, "layer4.1.conv1.weight": 8}
        | {"fc.weight": 9},
    ),
    "xvit_tiny_p16_224": (None, {"patch_embed": 0, "blocks.0.": 1, "blocks.1.": 2, "head.weight": "last"}),
    "linglo_b0": (None, {"patch_embed": 0, "stages.0.units.0.": 1, "head.weight": "last"}),
}


def scales(model, decay, **more):
    names = {id(p): name for name, p in model.named_parameters()}
    groups = layer_groups(model, 0.05, decay, **more)
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", [*LAYERS, "convnext_tiny", "swin_tiny_patch4_window7_224", "efficientnet_b0"])
def test_an_encoder_without_a_classifier_has_the_rates_that_it_has_with_one(name):
    with torch.device("meta"):
        whole, encoder = (timm.create_model(name, num_classes=classes) for classes in (5, 0))
    expected, found = scales(whole, 0.7), scales(encoder, 0.7, classifier=False)
    assert found == {key: expected[key] for key in found} and len(found) == len(list(encoder.parameters()))
    assert max(scale for scale, _ in expected.values()) == 1


@pytest.mark.parametrize("name", LAYERS)
def test_the_rate_of_layer_i_of_l_is_scaled_by_decay_to_the_l_plus_1_minus_i(name):
    depth, layers = LAYERS[name]
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    found = scales(model, 0.7)
    assert set(found) == {key for key, _ in model.named_parameters()}
    depth = depth or round(np.log(min(scale for scale, _ in found.values())) / np.log(0.7)) - 1
    assert depth >= 6
    for start, layer in layers.items():
        layer = depth + 1 if layer == "last" else layer
        own = [scale for key, (scale, _) in found.items() if key.startswith(start)]
        assert own and own == pytest.approx([0.7 ** (depth + 1 - layer)] * len(own)), start
    exponents = {round(np.log(scale) / np.log(0.7)) for scale, _ in found.values()}
    assert exponents == set(range(depth + 2))  # no layer is skipped


# timm's name of a parameter: the official one, and its layer where the official list has 12 or 6
CONVNEXT = {
    "stem.0.weight": ("downsample_layers.0.0.weight", 0, 0),
    "stem.1.bias": ("downsample_layers.0.1.bias", 0, 0),
    "stages.0.blocks.2.conv_dw.weight": ("stages.0.2.dwconv.weight", 1, 1),
    "stages.1.downsample.1.weight": ("downsample_layers.1.1.weight", 2, 2),
    "stages.1.blocks.0.gamma": ("stages.1.0.gamma", 2, 2),
    "stages.2.downsample.0.weight": ("downsample_layers.2.0.weight", 3, 3),
    "stages.2.blocks.2.mlp.fc1.weight": ("stages.2.2.pwconv1.weight", 3, 3),
    "stages.2.blocks.3.norm.weight": ("stages.2.3.norm.weight", 4, 4),
    "stages.2.blocks.8.mlp.fc2.bias": ("stages.2.8.pwconv2.bias", 5, 5),
    "stages.3.downsample.1.bias": ("downsample_layers.3.1.bias", 12, 6),
    "stages.3.blocks.2.conv_dw.bias": ("stages.3.2.dwconv.bias", 12, 6),
    "head.norm.weight": ("norm.weight", 13, 7),
    "head.fc.weight": ("head.weight", 13, 7),
}


@pytest.mark.parametrize(("name", "column"), [("convnext_small", 1), ("convnext_base", 1), ("convnext_tiny", 2)])
def test_convnext_has_the_layers_of_its_authors(name, column):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    layers = 12 if column == 1 else 6
    found = scales(model, 0.7)
    assert set(found) == {key for key, _ in model.named_parameters()}
    for key, row in CONVNEXT.items():
        assert found[key][0] == pytest.approx(0.7 ** (layers + 1 - row[column])), key
    if column == 1:
        assert found["stages.2.blocks.26.gamma"][0] == pytest.approx(0.7**2)  # the ninth group of three: layer 11
    assert {round(np.log(scale) / np.log(0.7)) for scale, _ in found.values()} == set(range(layers + 2))
    assert all(
        decay == (0.0 if p.ndim <= 1 else 0.05) for key, p in model.named_parameters() for decay in [found[key][1]]
    )


@pytest.mark.parametrize(
    ("name", "key", "layer", "last"),
    [
        *(("resnet101", "layer3.22.conv1.weight", 11, 13), ("resnet101", "layer2.3.conv1.weight", 3, 13)),
        *(("resnet152", "layer3.35.conv1.weight", 12, 14), ("resnet152", "layer3.3.conv1.weight", 4, 14)),
        *(("resnet200", "layer2.23.conv1.weight", 7, 18), ("resnet200", "layer3.0.conv1.weight", 8, 18)),
        ("resnet101", "layer4.0.conv1.weight", 12, 13),
    ],
)
def test_large_resnets_have_spark_s_layers(name, key, layer, last):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    assert scales(model, 0.8)[key][0] == pytest.approx(0.8 ** (last - layer))


@pytest.mark.parametrize("name", LAYERS)
def test_norms_biases_tokens_and_positions_do_not_decay_in_fine_tuning_either(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    found, shapes = scales(model, 0.7), dict(model.named_parameters())
    for key, (_, decay) in found.items():
        exempt = shapes[key].ndim <= 1 or any(word in key for word in ("pos_embed", "cls_token", "temperature"))
        assert decay == (0.0 if exempt else 0.05), key


def test_the_schedule_gives_each_group_its_share_of_the_rate():
    model = timm.create_model("test_vit", num_classes=3)
    settings = FinetuneOptimizer(base_lr=1e-3, base_batch=512, layer_decay=0.5)
    optimizer = build_layered_optimizer(model, settings, 1024)
    plan = FinetuneSchedule(warmup_epochs=1, warmup_lr=1e-4, min_lr=1e-5)
    schedule = build_schedule(optimizer, plan, 10, 30)
    for step, expected in ((0, 1e-4), (5, (1e-4 + 2e-3) / 2), (10, 2e-3), (20, (2e-3 + 1e-5) / 2)):
        schedule.step_update(step)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(expected * group["lr_scale"])


@pytest.mark.parametrize(("nesterov", "kind"), [(True, True), (False, False)])
def test_sgd_takes_its_momentum_from_the_recipe(nesterov, kind):
    settings = FinetuneOptimizer(type="sgd", base_lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.0)
    optimizer = build_layered_optimizer(timm.create_model("test_resnet", num_classes=3), settings, 256)
    assert optimizer.defaults["momentum"] == 0.8
    assert optimizer.defaults["nesterov"] is kind


def test_mae_s_pooling_is_the_mean_of_the_patch_tokens_and_then_the_norm():
    model = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    torch.nn.init.normal_(model.norm.weight)
    weight, bias = model.norm.weight.clone(), model.norm.bias.clone()
    args = put_classifier(model, 3, Head(pooling="avg", norm="after", head_init_std=2e-5))
    images = torch.randn(2, 3, 32, 32)
    tokens = model.blocks(model.norm_pre(model._pos_embed(model.patch_embed(images))))
    pooled = tokens[:, model.num_prefix_tokens :].mean(dim=1)
    expected = torch.nn.functional.layer_norm(pooled, pooled.shape[1:], weight, bias, model.fc_norm.eps)
    assert torch.allclose(model(images), model.head(expected), atol=1e-6)
    assert 0 < model.head.weight.std() < 4e-5
    again = timm.create_model("test_vit", num_classes=3, img_size=32, **args)
    assert set(again.state_dict()) == set(model.state_dict())


def mixing(**changes):
    settings = {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1} | changes
    return Mixing(5, 0.5, Mix(**settings), 0, torch.device("cpu"))


def test_mixing_is_a_function_of_its_seed_and_leaves_the_global_generators_alone():
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 5
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    made = [mixing().mix(images.clone(), labels, seed) for seed in (1, 2, 1)]
    assert torch.equal(made[0][0], made[2][0]) and torch.equal(made[0][1], made[2][1])
    assert not torch.equal(made[0][1], made[1][1])
    assert all(targets.sum(dim=1).allclose(torch.ones(8)) for _, targets in made)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_without_mixing_the_target_is_the_label_smoothed():
    images = torch.randn(3, 3, 8, 8)
    same, targets = mixing(mixup=0.0, cutmix=0.0).mix(images, torch.tensor([0, 4, 2]), 1)
    assert same is images
    assert targets.argmax(dim=1).tolist() == [0, 4, 2]
    assert targets.sort(dim=1).values.unique().tolist() == pytest.approx([0.02, 0.92])


def test_erasing_follows_the_image_and_not_its_place_in_the_batch():
    images, ids = torch.zeros(16, 3, 16, 16), torch.arange(16)
    erased = mixing().erase(images.clone(), ids, 0)
    turned = mixing().erase(images.clone(), ids.flip(0), 0)
    assert torch.equal(erased, turned.flip(0))
    assert not torch.equal(erased, mixing().erase(images.clone(), ids, 1))
    changed = erased.flatten(1).abs().sum(dim=1) > 0
    assert 2 <= changed.sum() <= 14


def test_binary_targets_are_multi_hot_above_the_threshold_and_shares_without_one():
    model, targets = torch.nn.Flatten(), torch.tensor([[0.9, 0.1, 0.0], [0.25, 0.75, 0.0]])
    logits = torch.randn(2, 3, 1, 1)
    for threshold, expected in ((0.2, torch.tensor([[1.0, 0, 0], [1, 1, 0]])), (0.0, targets)):
        classifier = Classifier(model, ClassLoss(type="bce", threshold=threshold), [0.5] * 3, [0.5] * 3)
        found = classifier(logits, targets)["loss_bce"]
        slow = -(expected * logits.flatten(1).sigmoid().log() + (1 - expected) * (-logits).flatten(1).sigmoid().log())
        assert found == pytest.approx(slow.mean().item(), rel=1e-5)


def test_a_rank_counts_the_classes_in_front_and_a_broken_answer_is_last():
    logits = torch.tensor([[1.0, 2, 3], [1, 1, 0], [1, 1, 0], [float("nan"), 0, 0], [5, float("nan"), 0]])
    ranks = rank_of_label(logits, torch.tensor([2, 0, 1, 0, 2]))
    assert rank_of_label(logits[:1], torch.tensor([3])) == 8  # no output of the classifier, and not among any five
    assert ranks.tolist() == [0, 0, 1, 8, 2]

"""Sparse CNNs: hidden cells stay 0, statistics are those of visible cells, and without a mask it is timm's network."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm import layers
from timm.models import hgnet, senet
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn

from a2mim.encoder import MaskedEncoder
from a2mim.masking import BlockMask, expand_mask
from a2mim.wiring.hiding import Sparse

NETWORKS = ["resnet18", "resnetv2_50", "convnextv2_atto", "regnety_002", "mobilenetv3_small_050", "nf_regnet_b0"]


def build(name="resnet18", size=128, **more):
    torch.manual_seed(0)
    return MaskedEncoder(name, img_size=size, hide="sparse", **more)


def draw(size=128, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=generator), BlockMask(32, 0.6)(batch, size, size, generator)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_hidden_cells_are_0_in_every_stage_and_hidden_pixels_change_nothing(name, training):
    stages = [info["module"] for info in timm.create_model(name).feature_info][-3:]
    encoder = build(name, maps=stages).train(training)
    images, mask = draw()
    maps = copy.deepcopy(encoder)(images, mask)
    for features in maps:
        hidden = expand_mask(mask, *features.shape[-2:])
        assert features.masked_select(hidden).abs().max() == 0
        assert features.masked_select(~hidden).abs().max() > 0
    other = torch.where(expand_mask(mask, 128, 128), 7 - images, images)
    assert all(torch.equal(a, b) for a, b in zip(copy.deepcopy(encoder)(other, mask), maps, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_mask_it_is_timm_s_network_bit_for_bit(name):
    encoder = build(name).eval()
    images, mask = draw()
    encoder(images, mask)
    plain = timm.create_model(name, num_classes=0, **encoder.model_args).eval()
    plain.load_state_dict(encoder.model.state_dict())  # strict: the keys are timm's
    assert torch.equal(encoder.model.forward_features(images), plain.forward_features(images))
    assert torch.equal(encoder(images)[0], plain.forward_features(images))


@pytest.mark.parametrize("more_hidden", [False, True])
def test_a_batchnorm_sees_visible_cells_alone_and_so_do_its_running_statistics(more_hidden):
    encoder = build().train()
    images, mask = draw()
    if more_hidden:  # in the first image than in the second
        mask[0, :2] = True
    assert (mask[0].sum() > mask[1].sum()) == more_hidden
    norm, seen = encoder.model.bn1, {}
    before = encoder.model.conv1.register_forward_hook(lambda m, a, out: seen.update(given=out.detach()))
    after = norm.register_forward_hook(lambda m, a, out: seen.update(made=out.detach()))
    encoder(images, mask)
    before.remove(), after.remove()
    cells = seen["given"].movedim(1, -1)[(~expand_mask(mask, 64, 64))[:, 0]].double()
    mean, variance = cells.mean(0), cells.var(0, correction=0)
    made = seen["made"].movedim(1, -1)[(~expand_mask(mask, 64, 64))[:, 0]]
    expected = (cells - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    expected = expected.relu()  # what the activation in place makes of it
    assert torch.allclose(made.double(), expected, atol=1e-5)
    assert torch.allclose(norm.running_mean.double(), 0.1 * mean, atol=1e-6)
    assert torch.allclose(norm.running_var.double(), 0.9 + 0.1 * cells.var(0), atol=1e-5)


def test_masks_whose_counts_nobody_may_look_at_give_the_same_numbers(monkeypatch):
    images, mask = draw()
    found = []
    for _ in range(2):
        encoder = build(maps=["layer2", "layer4"]).train()
        maps = encoder(images, mask, hidden_cells=int(mask.sum()))
        sum(one.sin().sum() for one in maps).backward()
        gradients = [parameter.grad for parameter in encoder.model.parameters()]
        found.append([*maps, *encoder.model.buffers(), *gradients])
        monkeypatch.setattr(Sparse, "_counts_are_equal", lambda self: False)  # as on a GPU
    for one, other in zip(*found, strict=True):
        assert (one.double() - other.double()).norm() <= 1e-5 * other.double().norm()


def test_each_layer_is_that_of_spark():
    """ResNet-18's first block by hand: convolution, times visible; norm over visible cells; pooling, times visible."""
    encoder = build().train()
    images, mask = draw()
    model, pixels = copy.deepcopy(encoder.model), ~expand_mask(mask, 128, 128)
    quarter = ~expand_mask(mask, 32, 32)

    def normalised(norm, x, visible):
        cells = x.movedim(1, -1)[visible[:, 0]]
        y = F.batch_norm(cells, None, None, norm.weight, norm.bias, training=True)
        return torch.zeros_like(x).movedim(1, -1).masked_scatter(visible[:, 0, ..., None], y).movedim(-1, 1)

    half = ~expand_mask(mask, 64, 64)
    x = F.relu(normalised(model.bn1, model.conv1(images * pixels) * half, half))
    x = F.max_pool2d(x, 3, 2, 1) * quarter
    block = model.layer1[0]
    y = F.relu(normalised(block.bn1, block.conv1(x) * quarter, quarter))
    y = F.relu(normalised(block.bn2, block.conv2(y) * quarter, quarter) + x)
    seen = []
    handle = encoder.model.layer1[0].register_forward_hook(lambda m, a, out: seen.append(out))
    encoder(images, mask)
    handle.remove()
    assert torch.allclose(seen[0], y, atol=1e-4)


def test_squeeze_and_excite_reads_the_mean_of_visible_cells():
    encoder = build("regnety_002").eval()
    images, mask = draw()
    module, seen = encoder.model.s1.b1.se, {}
    handle = module.fc1.register_forward_hook(lambda m, a, out: seen.update(mean=a[0].detach()))
    inner = module.register_forward_pre_hook(lambda m, a: seen.update(given=a[0].detach()), prepend=True)
    encoder(images, mask)
    handle.remove(), inner.remove()
    visible = ~expand_mask(mask, *seen["given"].shape[-2:])
    expected = (seen["given"] * visible).sum((2, 3)) / visible.sum((2, 3))
    assert torch.allclose(seen["mean"][..., 0, 0], expected, atol=1e-5)


def test_groupnorm_and_global_context_leave_hidden_cells_out():
    images, mask = draw()
    norm = nn.GroupNorm(2, 4)
    sparse = Sparse(lambda: mask)
    sparse.install(norm)
    x = torch.randn(2, 4, 8, 8)
    made, visible = norm(x), ~expand_mask(mask, 8, 8)[:, 0]
    for b in range(2):
        for group in (slice(0, 2), slice(2, 4)):
            cells = x[b, group][:, visible[b]]
            expected = (cells - cells.mean()) / (cells.var(correction=0) + norm.eps).sqrt()
            assert torch.allclose(made[b, group][:, visible[b]], expected, atol=1e-5)
    assert made.movedim(1, -1)[~visible].abs().max() == 0
    encoder = build("gcresnext26ts").eval()
    scores = []
    module = next(m for m in encoder.model.modules() if type(m).__name__ == "GlobalContext")
    handle = module.conv_attn.register_forward_hook(lambda m, a, out: scores.append(out))
    encoder(images, mask)
    handle.remove()
    weights = scores[0].flatten(2).softmax(-1).view_as(scores[0])
    assert weights.masked_select(expand_mask(mask, *weights.shape[-2:])).max() == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        *(nn.BatchNorm2d, layers.BatchNormAct2d, nn.InstanceNorm2d, layers.LayerNorm2d, layers.GroupNorm1),
        *(layers.EvoNorm2dB0, layers.EvoNorm2dB1, layers.EvoNorm2dB2, layers.EvoNorm2dS0, layers.EvoNorm2dS0a),
        *(layers.EvoNorm2dS1, layers.EvoNorm2dS1a, layers.EvoNorm2dS2, layers.EvoNorm2dS2a),
        *(layers.FilterResponseNormTlu2d, layers.FilterResponseNormAct2d),
        *(layers.SEModule, layers.EffectiveSEModule, layers.EcaModule, layers.CecaModule, SqueezeExcite),
        *(layers.GlobalContext, hgnet.EseModule, lambda width: senet.SEModule(width, 4)),
        *(
            lambda width: layers.grn.GlobalResponseNorm(width, channels_last=False),
            lambda width: nn.AdaptiveAvgPool2d(1),
        ),
    ],
)
def test_what_takes_statistics_answers_as_for_the_visible_part_alone(make, training):
    """The lower half is hidden: what is made of the upper half must be what a layer makes of it alone."""
    torch.manual_seed(0)
    module = make(64).train(training)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    alone, mask = copy.deepcopy(module), torch.tensor([[False, False], [True, True]]).expand(2, 2, 2)
    Sparse(lambda: mask).install(module)
    x = torch.randn(2, 64, 8, 8) + 1
    x[:, :, 4:] = 0
    made, expected = module(x.clone()), alone(x[:, :, :4].clone())
    assert torch.allclose(made[:, :, : expected.shape[2]], expected, atol=1e-5)
    assert not made[:, :, 4:].any()
    for own, other in zip(module.buffers(), alone.buffers(), strict=True):
        assert torch.allclose(own, other, atol=1e-6)  # running statistics


def test_layers_that_replace_others_are_hooked_and_none_is_hooked_twice():
    encoder = build().train()
    images, mask = draw()
    encoder(images, mask)
    encoder.model.bn1 = copy.deepcopy(encoder.model.bn1)
    encoder.model.bn1._forward_hooks.clear(), encoder.model.bn1._forward_pre_hooks.clear()
    encoder(images, mask)
    counts = {name: len(m._forward_hooks) for name, m in encoder.model.named_modules()}
    assert counts["bn1"] == counts["conv1"] == counts["layer1.0.bn1"] == 1
    twin = copy.deepcopy(encoder)
    twin(images, mask)
    assert {name: len(m._forward_hooks) for name, m in twin.model.named_modules()} == counts


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("inception_v3", 160, "hands on 79x79 cells, no multiple of the mask's 5x5"),
        ("swin_tiny_patch4_window7_224", 224, "moved into windows"),
        ("mobilevit_xxs", 128, "moved into windows"),
        ("xcit_nano_12_p16_224", 128, "sequence of tokens"),
        ("vit_tiny_patch16_224", 128, "sequence of tokens"),
        ("skresnet18", 128, "statistics over the whole map"),
        ("tf_efficientnet_cc_b0_4e", 128, "CondConv2d. takes statistics over the whole map"),
    ],
)
def test_what_cannot_be_sparse_is_refused_by_name_and_reason(name, size, reason):
    with pytest.raises(ValueError, match=f"{name} cannot be run on visible cells alone: .*{reason}"):
        build(name, size)


def test_cells_finer_than_the_last_map_are_refused():
    with pytest.raises(ValueError, match="hands on 4x4 cells, no multiple of the mask's 8x8"):
        build(size=128, mask_patch_size=16)


@pytest.mark.parametrize("place", ["bn1", "conv1", "layer1.1.bn2"])
def test_a_map_that_is_a_layer_s_own_output_is_whole_and_0_in_hidden_cells(place):
    encoder = build("resnet18", maps=[place]).eval()
    images, mask = draw()
    (features,) = encoder(images, mask)
    hidden = expand_mask(mask, *features.shape[-2:])
    assert features.shape[-1] in (32, 64)
    assert not features.masked_select(hidden).any() and features.masked_select(~hidden).any()
    plain = encoder(images, torch.zeros_like(mask))[0]
    assert torch.allclose(plain, encoder(images)[0], atol=1e-5)

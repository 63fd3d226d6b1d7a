import copy
import functools
import json

import pytest
import timm
import torch
from torch import Tensor

from a2mim.encoder import MaskedEncoder

# name, image side, then what the rule must find: site, its stride, output channels, output stride.
FAMILIES = [
    ("xcit_nano_12_p16_224", 64, "blocks.5", 16, 128, 16),
    ("vit_tiny_patch16_224", 64, "blocks.5", 16, 192, 16),
    ("deit_tiny_distilled_patch16_224", 64, "blocks.5", 16, 192, 16),
    ("resnet18", 64, "layer3", 16, 512, 32),
    ("convnext_atto", 64, "stages.2", 16, 320, 32),
    ("swin_tiny_patch4_window7_224", 64, "layers.2", 16, 768, 32),
    ("efficientnet_b0", 64, "blocks.4", 16, 1280, 32),
    ("regnetx_002", 64, "s3", 16, 368, 32),
]
NAMES = [row[0] for row in FAMILIES]


@functools.cache
def built(name: str, img_size: int = 64, token: str = "add") -> MaskedEncoder:
    """Shared between tests, which copy it before they change it."""
    torch.manual_seed(0)
    return MaskedEncoder(name, img_size=img_size, token=token).eval()


def some_images(batch_size: int = 2, side: int = 64) -> Tensor:
    return torch.randn(batch_size, 3, side, side, generator=torch.Generator().manual_seed(1))


def one_cell_hidden(batch_size: int = 2, cells: int = 2) -> Tensor:
    """The first image hides its upper right cell, the others nothing."""
    mask = torch.zeros(batch_size, cells, cells, dtype=torch.bool)
    mask[0, 0, -1] = True
    return mask


def plain_map(model, images: Tensor) -> Tensor:
    """timm's own final features as (B, D, h, w), from its documented formats."""
    features = model.forward_features(images)
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else features
    tokens = features[:, model.num_prefix_tokens :]
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).reshape(len(images), -1, side, side)


def output_of(encoder: MaskedEncoder, module: str, images: Tensor, mask: Tensor | None) -> Tensor:
    """What the module hands on, the token included."""
    seen = []
    handle = encoder.model.get_submodule(module).register_forward_hook(lambda m, i, o: seen.append(o))
    encoder(images, mask)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(("name", "side", "site", "site_stride", "channels", "stride"), FAMILIES)
def test_the_rule_finds_the_site_and_the_final_map_of_each_family(name, side, site, site_stride, channels, stride):
    encoder = built(name, side)
    assert (encoder.site, encoder.channels, encoder.strides) == (site, [channels], [stride])
    assert [place.strides for place in encoder.sites] == [(site_stride, site_stride)]
    assert encoder.img_size == (side, side)
    maps = encoder(some_images())
    assert [tuple(m.shape) for m in maps] == [(2, channels, side // stride, side // stride)]


@pytest.mark.parametrize("name", NAMES)
def test_features_without_a_mask_equal_plain_timm_bit_for_bit(name):
    encoder = built(name)
    plain = timm.create_model(name, num_classes=0, **json.loads(json.dumps(encoder.arguments()))["model_args"])
    plain.load_state_dict(encoder.model.state_dict(), strict=True)
    images = some_images()
    assert torch.equal(encoder(images)[0], plain_map(plain.eval(), images))
    assert torch.equal(encoder.model(images), plain(images))


@pytest.mark.parametrize("name", NAMES)
def test_the_token_is_added_to_the_hidden_cells_and_nowhere_else(name):
    encoder, images = built(name), some_images()
    last_child = {"resnet18": "layer3.1", "efficientnet_b0": "blocks.4.2"}.get(name, encoder.site)
    without, with_token = (output_of(encoder, last_child, images, mask) for mask in (None, one_cell_hidden()))
    expected = without.clone()
    token = encoder.tokens[0].detach()
    # 64 px and cells of 32 px: the upper right cell is rows 0, 1 and columns 2, 3 of a 4 x 4 map.
    if without.ndim == 3:
        prefix = without.shape[1] - 16
        expected[0, [prefix + i for i in (2, 3, 6, 7)]] += token
    elif name.startswith("swin"):
        expected[0, 0:2, 2:4] += token
    else:
        expected[0, :, 0:2, 2:4] += token[:, None, None]
    assert torch.equal(with_token, expected)
    assert not torch.equal(encoder(images, one_cell_hidden())[0][0], encoder(images)[0][0])


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one_is_used(name):
    encoder, images = copy.deepcopy(built(name)), some_images()
    maps = encoder(images, one_cell_hidden())
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    assert [key for key, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [key for key, p in encoder.model.named_parameters() if not p.requires_grad] == encoder.frozen
    before = encoder(images)[0]
    with torch.no_grad():
        for key in encoder.frozen:
            encoder.model.get_parameter(key).add_(torch.randn_like(encoder.model.get_parameter(key)))
    assert torch.equal(encoder(images)[0], before)


def test_the_share_of_frozen_parameters_is_that_of_the_unreached_blocks():
    shares = {}
    for name in NAMES:
        model = built(name).model
        frozen = sum(model.get_parameter(key).numel() for key in built(name).frozen)
        shares[name] = round(100 * frozen / sum(p.numel() for p in model.parameters()), 1)
    # XCiT: all of class attention except the norms that its patch tokens pass through.
    assert shares == dict.fromkeys(NAMES, 0.0) | {"xcit_nano_12_p16_224": 13.6}
    assert built("convnext_atto").frozen == ["head.norm.weight", "head.norm.bias"]
    assert {key.split(".")[0] for key in built("xcit_nano_12_p16_224").frozen} == {"cls_token", "cls_attn_blocks"}


def test_parameters_that_start_at_zero_are_not_taken_for_dead():
    model = built("resnet18").model  # timm starts the last gamma of each residual branch at zero
    assert (model.layer1[0].bn2.weight == 0).all() and model.layer1[0].conv1.weight.requires_grad


def test_xcit_pools_what_was_trained_and_keeps_its_keys():
    encoder = built("xcit_nano_12_p16_224")
    assert encoder.model_args["global_pool"] == "avg"
    assert list(encoder.model.state_dict()) == list(timm.create_model(encoder.name, num_classes=0).state_dict())
    images = some_images()
    pooled = encoder.model.forward_head(encoder.model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(pooled, encoder(images)[0].mean((2, 3)))


def test_pooling_that_reads_trained_parameters_stays():
    assert built("vit_tiny_patch16_224").model.global_pool == "token"
    assert all("global_pool" not in built(name).model_args for name in NAMES[1:])


@pytest.mark.parametrize(("name", "width"), [("resnet18", 256), ("xcit_nano_12_p16_224", 128)])
def test_building_leaves_statistics_and_the_random_state_as_timm_does(name, width):
    torch.manual_seed(3)
    encoder = MaskedEncoder(name, img_size=64)
    after = torch.rand(1)
    torch.manual_seed(3)
    plain = timm.create_model(name, num_classes=0)
    torch.nn.init.trunc_normal_(torch.empty(width), std=0.02)
    assert torch.equal(after, torch.rand(1))
    for (key, a), b in zip(encoder.model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert all(m.training for m in encoder.modules())
    assert {m.momentum for m in encoder.modules() if hasattr(m, "momentum")} == {0.1}


def test_stochastic_depth_is_for_training_only_and_freezes_nothing_more():
    encoder = MaskedEncoder("xcit_nano_12_p16_224", img_size=64, drop_path_rate=0.5)
    assert encoder.frozen == built("xcit_nano_12_p16_224").frozen
    assert encoder.model_args == built("xcit_nano_12_p16_224").model_args
    images = some_images()
    assert not torch.equal(encoder(images)[0], encoder(images)[0])
    assert torch.equal(encoder.eval()(images)[0], encoder(images)[0])


def test_the_state_dictionary_is_timms_plus_the_tokens():
    encoder = built("swin_tiny_patch4_window7_224", token="scaled")
    plain = timm.create_model(encoder.name, num_classes=0, **encoder.model_args)
    assert set(encoder.state_dict()) == {f"model.{key}" for key in plain.state_dict()} | {"tokens.0", "gammas.0"}
    assert 0.01 < encoder.tokens[0].std() < 0.03 and (encoder.gammas[0] == 1e-6).all()
    assert len(built("resnet18").gammas) == 0


@pytest.mark.parametrize("name", ["resnet18", "xcit_nano_12_p16_224"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_inserts_the_same_token_again(name, reentrant):
    timm.layers.set_reentrant_ckpt(reentrant)
    gradients = []
    for checkpointing in (False, True):
        encoder = copy.deepcopy(built(name))
        encoder.model.set_grad_checkpointing(checkpointing)
        images = some_images().requires_grad_()
        encoder(images, one_cell_hidden())[0].square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.requires_grad])
    timm.layers.set_reentrant_ckpt(False)
    assert gradients[0][-1].abs().sum() > 0
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_the_model_alone_never_sees_a_token():
    encoder, images = built("resnet18"), some_images()
    before = encoder.model(images)
    encoder(images, one_cell_hidden())
    assert torch.equal(encoder.model(images), before)


def test_a_deep_copy_inserts_its_own_token():
    encoder, images, mask = built("vit_tiny_patch16_224"), some_images(), one_cell_hidden()
    before = encoder(images, mask)[0]
    other = copy.deepcopy(encoder)
    assert torch.equal(other(images, mask)[0], before)
    other.tokens[0].data += 1
    assert torch.equal(encoder(images, mask)[0], before)
    assert not torch.equal(other(images, mask)[0], before)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_it_compiles_into_one_graph_that_takes_any_mask(name):
    encoder, images = built(name), some_images()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(encoder, fullgraph=True, backend=backend)
    for mask in (one_cell_hidden(), ~one_cell_hidden()):
        torch.testing.assert_close(compiled(images, mask), encoder(images, mask))
    assert len(graphs) == 1


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_on_the_meta_device_with_the_same_shapes(name):
    with torch.device("meta"):
        encoder = MaskedEncoder(name, img_size=64, token="scaled")
    real = built(name)
    assert (encoder.site, encoder.channels, encoder.strides) == (real.site, real.channels, real.strides)
    assert all(tensor.is_meta for tensor in encoder.state_dict().values())
    maps = encoder(torch.empty(2, 3, 64, 64, device="meta"), torch.empty(2, 2, 2, dtype=torch.bool, device="meta"))
    assert maps[0].shape == real(some_images())[0].shape


def test_xcit_takes_sizes_that_its_patches_do_not_divide():
    encoder = built("xcit_nano_12_p16_224", 72)  # 72 / 16 = 4.5: its strided convolutions round up
    maps = encoder(some_images(side=72), torch.ones(2, 3, 3, dtype=torch.bool))
    assert maps[0].shape == (2, 128, 5, 5) and encoder.strides == [16]


def test_other_channels_and_oblong_images():
    encoder = MaskedEncoder("resnet18", img_size=(64, 96), in_chans=5, mask_patch_size=32)
    images = torch.randn(2, 5, 64, 96)
    assert encoder(images, torch.zeros(2, 2, 3, dtype=torch.bool))[0].shape == (2, 512, 2, 3)
    assert encoder.arguments()["model_args"] == {"in_chans": 5}


def test_auto_prefers_a_map_no_coarser_than_the_mask_cell():
    assert MaskedEncoder("resnet18", img_size=64, mask_patch_size=8).site == "layer2"


@pytest.mark.parametrize(
    ("name", "site", "width"),
    [
        ("vit_tiny_patch16_224", "patch_embed", 192),
        ("convnext_atto", "stages.3.downsample", 320),
        ("resnet18", "layer4", 512),
    ],
)
def test_the_site_can_be_named(name, site, width):
    encoder = MaskedEncoder(name, site=site, img_size=64)
    images, mask = some_images(), torch.ones(2, 2, 2, dtype=torch.bool)
    assert encoder.site == site and encoder.tokens[0].shape == (width,)
    assert not torch.equal(encoder.eval()(images, mask)[0], encoder(images)[0])


def test_a_token_on_the_patch_embedding_leaves_the_class_token_alone():
    encoder = MaskedEncoder("vit_tiny_patch16_224", site="patch_embed", token="replace", img_size=64).eval()
    images, mask = some_images(1), torch.ones(1, 2, 2, dtype=torch.bool)
    embedded = output_of(encoder, "norm_pre", images, mask)
    position = encoder.model.pos_embed
    torch.testing.assert_close(embedded[:, 1:], encoder.tokens[0] + position[:, 1:])
    assert torch.equal(embedded[:, :1], encoder.model.cls_token + position[:, :1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(name="resnet5O"), ["resnet5O", "resnet50"]),
        (dict(name="resnet18", site="layer_3"), ["layer_3", "layer3"]),
        (dict(name="vit_tiny_patch16_224", site="head_drop"), ["head_drop", "patch_embed"]),
        (dict(name="resnet18", token="sum"), ["sum", "add, replace, scaled"]),
        (dict(name="efficientformer_l1"), ["64 x 64 px", "own size"]),
        (dict(name="vgg11", drop_path_rate=0.1), ["vgg11", "drop_path_rate"]),
    ],
)
def test_errors_name_what_was_given_and_what_is_allowed(arguments, words):
    with pytest.raises(ValueError) as error:
        MaskedEncoder(**{"img_size": 64} | arguments)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": "64"}, "img_size='64' must be a number of pixels, or"),
        ({"img_size": (64,)}, r"img_size=\(64,\) must be a number of pixels, or \(height, width\)"),
        ({"site": 3}, "site=3 must be the name of a module"),
        ({"maps": ["layer4", 3]}, "maps=.* must be the name of a module, several of them, or 'auto'"),
        ({"in_chans": 0}, "in_chans=0 must be a whole number of at least 1"),
        ({"mask_patch_size": "16"}, "mask_patch_size='16' must be a whole number"),
        ({"token_std": "0.02"}, "token_std='0.02' must be a number of at least 0"),
        ({"drop_path_rate": 2.0}, "drop_path_rate=2.0 must be a number of at least 0 and at most 1"),
        ({"model_args": 3}, "model_args=3 a dict"),
        ({"name": None}, "name=None must be a name or a network"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=f"MaskedEncoder: .*{message}"):
        MaskedEncoder(**{"name": "resnet18", "img_size": 64} | arguments)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"32 x 32 px .* 64 x 64 px"):
        built("resnet18")(some_images(side=32))


@pytest.mark.parametrize("flag", ["visible_stats", "pretrained"])
def test_a_flag_that_is_neither_true_nor_false_is_refused(flag):
    with pytest.raises(ValueError, match=f"{flag}='no' must be True or False"):
        MaskedEncoder("test_vit", **{"img_size": 64, flag: "no"})


def test_published_weights_that_cannot_be_fetched_are_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError("no network here")

    monkeypatch.setattr("a2mim.wiring.timm_models.timm.create_model", fail)
    with pytest.raises(OSError, match=r"weights for test_vit .* could not be fetched \(no network here\).* NAME:FILE"):
        MaskedEncoder("test_vit", img_size=64, pretrained=True)

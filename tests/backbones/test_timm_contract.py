"""timm's contract, over every variant where the meta device will do and over one tiny model of each family for real."""

import functools
import math

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.models._features_fx import create_feature_extractor
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

VARIANTS = [*timm.list_models("xvit_*"), *timm.list_models("linglo_*")]
TINY = {
    "xvit": ("xvit_tiny_p16_224", dict(embed_dim=16, depth=3, num_heads=2, eta=0.5, img_size=64)),
    "linglo": ("linglo_b0", dict(embed_dims=(8, 12, 16, 24), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 3))),
}
SMALLEST = {
    "xvit": ("xvit_tiny_p16_224", dict(embed_dim=8, depth=1, cls_attn_layers=1, num_heads=2, img_size=64)),
    "linglo": ("linglo_b0", dict(embed_dims=(8, 12), depths=(1, 1), num_heads=(1, 2))),
}
family = pytest.mark.parametrize("family", TINY)
variant = pytest.mark.parametrize("name", VARIANTS)


def build(family: str, sizes=TINY, **arguments):
    torch.manual_seed(0)
    name, tiny = sizes[family]
    return timm.create_model(name, **tiny | arguments).eval()


@functools.cache
def on_meta(name: str, **arguments):
    """Shared between tests, which do not change it."""
    with torch.device("meta"):
        return timm.create_model(name, **arguments)


def some_images(side: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def as_map(output: Tensor, like: Tensor) -> Tensor:
    """The (B, D, h, w) map in what a module returns: itself, or tokens in raster order."""
    return output if output.ndim == 4 else output.transpose(1, 2).reshape(like.shape)


def gradients(model) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_papers_seven_names_are_there_and_a_nano_of_ours():
    sizes = [f"xvit_{size}_p16_224" for size in ("base", "medium", "nano", "small", "tiny")]
    assert [*sizes, "linglo_b0", "linglo_b1", "linglo_b2"] == VARIANTS


@variant
def test_features_head_and_logits_fit_together(name):
    model, images = on_meta(name), torch.empty(2, 3, 224, 224, device="meta")
    features = model.forward_features(images)
    assert features.shape[1 if features.ndim == 4 else -1] == model.num_features == model.head_hidden_size
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert model(images).shape == (2, 1000) and model.num_classes == 1000


@variant
def test_feature_info_tells_widths_strides_and_modules_at_any_size(name):
    model, images = on_meta(name), torch.empty(1, 3, 96, 121, device="meta")
    modules = dict(model.named_modules())
    maps = model.forward_intermediates(images, intermediates_only=True)
    assert len(maps) == len(model.feature_info)
    for info, feature_map in zip(model.feature_info, maps, strict=True):
        cells = [math.ceil(side / info["reduction"]) for side in (96, 121)]
        assert feature_map.shape == (1, info["num_chs"], *cells)
        assert info["module"] in modules


@variant
def test_no_weights_are_offered_for_download(name):
    cfg = timm.get_pretrained_cfg(name)
    assert not cfg.has_weights and not timm.is_model_pretrained(name)
    model = on_meta(name)
    assert model.get_submodule(cfg.classifier) is model.get_classifier()
    assert isinstance(model.get_submodule(cfg.first_conv), torch.nn.Conv2d)


@variant
def test_a_full_set_of_layers_is_ordered_from_the_images_to_the_classes(name):
    model = on_meta(name)
    for coarse in (False, True):
        layers = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(layers) == {key for key, _ in model.named_parameters()}
        first = model.pretrained_cfg["first_conv"]
        assert layers[f"{first}.weight"] == 0
        assert max(layers.values()) == layers["head.weight"]
        depths = [layers[key] for key in layers if key.startswith(("blocks", "stages"))]
        assert sorted(set(depths)) == list(range(1, max(depths) + 1))
    fine = group_parameters(model, model.group_matcher(), reverse=True)
    blocks = len(model.blocks) if hasattr(model, "blocks") else sum(len(stage.units) for stage in model.stages)
    assert len({layer for key, layer in fine.items() if key.startswith(("blocks", "stages"))}) == blocks
    assert len(param_groups_layer_decay(model, layer_decay=0.7)) > blocks


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        *(("xvit_tiny_p16_224", 1.91), ("xvit_small_p16_224", 3.79), ("xvit_medium_p16_224", 7.15)),
        *(("xvit_base_p16_224", 12.7), ("linglo_b0", 0.57), ("linglo_b1", 2.23), ("linglo_b2", 4.71)),
    ],
)
def test_the_variants_multiply_as_often_as_specified(name, giga):
    """Multiplications and additions of one image of 224 px, computed when the design was written down."""
    with FlopCounterMode(display=False) as counter:
        on_meta(name)(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=0.005)


@pytest.mark.parametrize("name", ["xvit_small_p16_224", "linglo_b0"])
def test_operations_and_memory_are_linear_in_the_number_of_pixels(name):
    model, costs = on_meta(name), []
    for side in (224, 448, 896):
        saved = {}
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.update({id(t): t}) or t, lambda t: t
        )
        with FlopCounterMode(display=False) as counter, keep:
            model(torch.empty(1, 3, side, side, device="meta"))
        costs.append((counter.get_total_flops(), sum(t.nbytes for t in saved.values())))
    for small, middle, large in zip(*costs, strict=True):
        assert (large - middle) / (middle - small) == 4  # classifier and weights cancel


@family
def test_intermediates_are_what_the_declared_modules_return(family):
    model, images, seen = build(family), some_images(), []
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(lambda module, inputs, output: seen.append(output))
    final, maps = model.forward_intermediates(images)
    assert torch.equal(final, model.forward_features(images))
    for feature_map, output in zip(maps, seen[: len(maps)], strict=True):
        assert torch.equal(feature_map, as_map(output, feature_map))


@family
def test_intermediates_take_indices_formats_and_an_early_stop(family):
    model, images = build(family), some_images()
    _, maps = model.forward_intermediates(images)
    taken = model.forward_intermediates(images, indices=[0, -1], intermediates_only=True)
    assert [torch.equal(a, b) for a, b in zip(taken, (maps[0], maps[-1]), strict=True)] == [True, True]
    assert len(model.forward_intermediates(images, indices=2, intermediates_only=True)) == 2
    rows = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    assert all(torch.equal(as_map(row, m), m) for row, m in zip(rows, maps, strict=True))
    last = model.get_submodule(model.feature_info[-1]["module"])
    last.register_forward_hook(lambda *_: pytest.fail("ran behind the last index"))
    early = model.forward_intermediates(images, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], maps[1])
    with pytest.raises(ValueError, match="NHWC"):
        model.forward_intermediates(images, output_fmt="NHWC")


def test_xvit_norms_its_intermediates_when_asked():
    model, images = build("xvit"), some_images()
    torch.nn.init.normal_(model.norm.weight)
    plain, normed = (model.forward_intermediates(images, norm=norm, output_fmt="NLC")[1] for norm in (False, True))
    assert all(torch.equal(model.norm(a), b) for a, b in zip(plain, normed, strict=True))


@family
def test_pruning_keeps_the_maps_and_drops_what_lies_behind(family):
    model, images = build(family), some_images()
    before = model.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
    size = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    final, after = model.forward_intermediates(images, indices=[0, 1])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert sum(p.numel() for p in model.parameters()) < size
    assert torch.equal(model(images), final)  # no head, no pooling
    assert torch.equal(as_map(final, after[-1]), after[-1]) and model.num_features == after[-1].shape[1]


@family
def test_pruning_may_leave_the_head(family):
    model, images = build(family), some_images()
    logits = model(images)
    assert model.prune_intermediate_layers([-1], prune_head=False) == [len(model.feature_info) - 1]
    assert torch.equal(model(images), logits)


@family
def test_features_only_returns_the_maps_that_its_feature_info_tells(family):
    for chosen, count in (({}, 3 if family == "xvit" else 4), (dict(out_indices=(-2, -1)), 2)):
        model = build(family, features_only=True, **chosen)
        maps = model(some_images())
        assert len(maps) == count
        assert [m.shape[1] for m in maps] == model.feature_info.channels()
        assert [m.shape[2] for m in maps] == [64 // stride for stride in model.feature_info.reduction()]


@family
def test_pretrained_weights_that_do_not_exist_are_refused(family):
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        build(family, pretrained=True)


@family
def test_features_only_equals_forward_intermediates_of_the_same_weights(family):
    model, images = build(family), some_images()
    features = build(family, features_only=True, out_indices=(0, 2))
    features.model.load_state_dict(model.state_dict(), strict=False)
    expected = model.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(features(images), expected, strict=True))


@family
def test_other_channels_sizes_and_classes_can_be_asked_for(family):
    model = build(family, in_chans=5, img_size=(96, 64), num_classes=7)
    assert model(torch.randn(2, 5, 96, 64)).shape == (2, 7)
    assert model(torch.randn(1, 5, 50, 130)).shape == (1, 7)
    model.reset_classifier(3)
    assert model(torch.randn(1, 5, 96, 64)).shape == (1, 3) and not model.get_classifier().training
    model.reset_classifier(0)
    assert model.num_classes == 0 and model(torch.randn(1, 5, 96, 64)).shape == (1, model.num_features)


@family
def test_pooling_is_chosen_at_the_start_or_later(family):
    images = some_images()
    for pool in ("avg", "") + (("token",) if family == "xvit" else ()):
        model, later = build(family, global_pool=pool, num_classes=0), build(family, num_classes=0)
        later.reset_classifier(0, pool)
        features = model.forward_features(images)
        patches = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features[:, 1:]
        expected = {"avg": patches.mean(dim=1), "": features, "token": features[:, 0]}[pool]
        assert model.global_pool == later.global_pool == pool
        torch.testing.assert_close(model(images), expected)
        torch.testing.assert_close(later(images), expected)
    with pytest.raises(ValueError, match="max"):
        model.reset_classifier(0, "max")


@family
def test_one_dimensional_and_listed_parameters_do_not_decay(family):
    model = build(family)
    names = {id(p): name for name, p in model.named_parameters()}
    assert model.no_weight_decay() <= set(names.values())
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert not decayed & model.no_weight_decay()
    assert all(name.endswith(("weight", "saliency")) for name in decayed)
    if family == "xvit":
        assert {"pos_embed", "cls_token", "blocks.0.attn.gamma", "cls_attn_blocks.1.attn.gamma"} <= (
            model.no_weight_decay()
        )


@family
def test_every_parameter_takes_part_in_the_logits(family):
    model = build(family).train()
    model(some_images()).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@family
def test_gradient_checkpointing_runs_the_blocks_again_with_the_same_gradients(family):
    results, runs = [], []
    for enable in (False, True):
        model = build(family).train()
        model.set_grad_checkpointing(enable)
        inner = model.blocks[0].attn if family == "xvit" else model.stages[0].units[0].attn
        count = []
        inner.register_forward_hook(lambda *_, count=count: count.append(1))
        model(some_images()).square().sum().backward()
        results.append(gradients(model))
        runs.append(len(count))
    assert runs == [1, 2]
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, msg=name)


@family
def test_drop_path_acts_in_training_only(family):
    model, plain, images = build(family, drop_path_rate=0.5), build(family), some_images()
    assert torch.equal(model(images), plain(images))
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == ([0.5] * 3 if family == "xvit" else [0, 0.125, 0.25, 0.375, 0.5])
    model.train(), plain.train()
    assert not torch.equal(model.forward_features(images), plain.forward_features(images))


@family
def test_bf16_autocast_stays_close_to_float32(family):
    model = build(family)
    for scale in (1, 1e4):  # images that nobody normalised
        images = scale * some_images()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.forward_features(images).float()
        exact = model.forward_features(images)
        assert (rounded - exact).norm() / exact.norm() < 0.05


@family
def test_the_model_itself_may_be_in_half_or_double_precision(family):
    images, exact = some_images(), build(family)(some_images())
    assert torch.allclose(build(family).bfloat16()(images.bfloat16()).float(), exact, atol=0.05)
    torch.testing.assert_close(build(family).double()(images.double()).float(), exact, rtol=1e-4, atol=1e-5)


@family
def test_it_compiles_into_one_graph_also_under_autocast(family):
    model, images = build(family, SMALLEST), some_images()
    with torch.autocast("cpu", torch.bfloat16):
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.equal(compiled(images), model(images))


@family
def test_it_exports_for_any_batch_and_any_size(family):
    model, dynamic = build(family, SMALLEST), torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic},)
    exported = torch.export.export(model, (some_images(),), dynamic_shapes=shapes).module()
    for images in (some_images(), torch.randn(3, 3, 97, 160)):
        torch.testing.assert_close(exported(images), model(images))


@family
def test_torch_fx_extracts_features_as_in_timms_own_tests(family):
    model, images = build(family, SMALLEST), some_images()
    inner = model.feature_info[0]["module"] + ("" if family == "xvit" else ".norm")
    outputs = create_feature_extractor(model, {inner: "map", "head": "logits"})(images)
    maps = model.forward_intermediates(images, indices=[0], intermediates_only=True)
    assert torch.equal(as_map(outputs["map"], maps[0]), maps[0])
    assert torch.equal(outputs["logits"], model(images))


@family
@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and warns of each size that becomes a constant
def test_torch_jit_trace_gives_the_same_logits(family):
    model, images = build(family, SMALLEST), some_images()
    torch.testing.assert_close(torch.jit.trace(model, images)(images), model(images))


NOT_SCRIPTABLE = {  # as timm's tests keep a list; torch.export, torch.fx and torch.jit.trace work
    "xvit": "einops.rearrange takes **axes_lengths, which TorchScript does not compile",
    "linglo": "einops.rearrange takes **axes_lengths, which TorchScript does not compile",
}


@family
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_list_of_models_that_torchscript_cannot_compile_is_true(family):
    with pytest.raises(torch.jit.frontend.NotSupportedError, match="axes_lengths"):
        torch.jit.script(build(family, SMALLEST))
    assert "axes_lengths" in NOT_SCRIPTABLE[family]


@pytest.mark.parametrize(
    ("family", "arguments", "words"),
    [
        ("xvit", dict(global_pool="max"), ["max", "avg", "token"]),
        ("linglo", dict(global_pool="token"), ["token", "avg"]),
        ("xvit", dict(qkv="shared"), ["shared", "per_head", "full"]),
        ("xvit", dict(num_heads=3), ["16", "3 heads"]),
        ("linglo", dict(num_heads=(1, 5, 2, 3)), ["12", "5 heads"]),
        ("linglo", dict(interaction="sum"), ["sum", "product, gate, broadcast"]),
    ],
)
def test_errors_name_what_was_given_and_what_is_allowed(family, arguments, words):
    with pytest.raises(ValueError) as error:
        build(family, **arguments)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)

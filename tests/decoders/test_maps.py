"""Decoders of all maps and the mask: what is hidden does not matter, each map counts, answers fit the target."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from a2mim.decoders import (
    ConvNeck,
    EachMap,
    EachScale,
    FusedLinear,
    LightDecoder,
    LinearDecoder,
    TransformerDecoder,
    light,
    make_decoder,
)
from a2mim.decoders.light import norm_visible
from a2mim.decoders.positions import sincos_positions
from a2mim.masking import BlockMask, expand_mask

SHAPES = {"channels": [8, 16, 24, 32], "strides": [4, 8, 16, 32]}


def maps_of(strides=(4, 8, 16, 32), channels=(8, 16, 24, 32), side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, c, side // s, side // s, generator=generator) for c, s in zip(channels, strides, strict=True)
    ]


def small(kind, **more):
    sizes = {TransformerDecoder: dict(embed_dim=32, depth=2, num_heads=4), LightDecoder: dict(width=64)}
    return kind(**SHAPES, **{"out_channels": 3, "out_stride": 1} | more, **sizes.get(kind, {}))


KINDS = [ConvNeck, FusedLinear, LightDecoder, TransformerDecoder]
MASK = BlockMask(32, 0.5)(2, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_with_a_token_of_its_own_hidden_cells_of_the_maps_do_not_matter(kind, training):
    decoder = small(kind).train(training)
    maps = maps_of()
    noise = [torch.where(expand_mask(MASK, *m.shape[-2:]), 100 * torch.randn_like(m), m) for m in maps]
    assert torch.equal(decoder(maps, MASK), decoder(noise, MASK))
    with_token = small(kind, mask_token=False).train(training)
    assert not torch.equal(with_token(maps, MASK), with_token(noise, MASK))
    assert len(list(decoder.parameters())) > len(list(with_token.parameters()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strides", [(32, 16), (16, 8), (32, 8), (8, 32, 16)])
def test_hidden_cells_of_an_earlier_coarser_map_do_not_matter(kind, strides):
    sizes = {TransformerDecoder: dict(embed_dim=32, depth=1, num_heads=4), LightDecoder: dict(width=32)}
    channels = (8,) * len(strides)
    decoder = kind(list(channels), list(strides), 3, 8, **sizes.get(kind, {})).eval()
    maps = maps_of(strides, channels)
    for mask in (MASK, BlockMask(32, 0.25)(2, 64, 64, generator=torch.Generator().manual_seed(1))):
        noise = [torch.where(expand_mask(mask, *m.shape[-2:]), torch.nan, m) for m in maps]
        assert torch.equal(decoder(maps, mask), decoder(noise, mask))


def test_a_coarser_map_is_interpolated_where_nothing_is_hidden_by_zeros():
    for mask_token in (False, True):
        decoder = FusedLinear([8, 8], [16, 8], 3, 8, mask_token=mask_token)
        maps = maps_of((16, 8), (8, 8))
        coarse = F.conv2d(maps[0], decoder.fuse.projections[0].weight, decoder.fuse.projections[0].bias)
        finer = F.interpolate(coarse, (8, 8), mode="nearest-exact" if mask_token else "bilinear")
        assert torch.allclose(decoder.fuse(maps), (finer + maps[1]) / 2, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_map_and_every_parameter_gets_a_gradient(kind):
    decoder = small(kind).train()
    maps = [m.requires_grad_() for m in maps_of()]
    (decoder(maps, MASK) * torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(m.grad.abs().max() > 0 for m in maps)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in decoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (27, 8), (384, 16)])
def test_the_answer_has_the_target_s_channels_and_grid(kind, channels, stride):
    maps, shapes = maps_of(), SHAPES
    if kind is LightDecoder:  # maps finer than the target have no place in it
        keep = [i for i, s in enumerate(SHAPES["strides"]) if s >= stride]
        maps, shapes = [maps[i] for i in keep], {k: [v[i] for i in keep] for k, v in SHAPES.items()}
    sizes = {TransformerDecoder: dict(embed_dim=32, depth=1, num_heads=4), LightDecoder: dict(width=64)}
    decoder = kind(**shapes, out_channels=channels, out_stride=stride, **sizes.get(kind, {}))
    assert decoder(maps, MASK).shape == (2, channels, 64 // stride, 64 // stride)


def test_the_transformer_reads_the_class_token_and_gives_it_position_0():
    decoder = TransformerDecoder([8], [16], embed_dim=32, depth=2, num_heads=4).eval()
    maps, prefix = maps_of([16], [8]), torch.randn(2, 2, 8)
    without, with_it = decoder(maps, MASK), decoder(maps, MASK, prefix=prefix)
    assert without.shape == with_it.shape == (2, 3, 64, 64)
    assert (without - with_it).abs().max() > 1e-4
    tokens = decoder.embed(maps[0].flatten(2).transpose(1, 2))
    hidden = expand_mask(MASK, 4, 4).flatten(1)[..., None]
    tokens = torch.where(hidden, decoder.mask_token, tokens) + sincos_positions(32, 4, 4)
    x = torch.cat([decoder.embed(prefix), tokens], 1)
    for block in decoder.blocks:
        x = block(x)
    patches = decoder.pred(decoder.norm(x))[:, 2:]
    expected = torch.zeros(2, 3, 64, 64)
    for i in range(16):
        y, z = divmod(i, 4)
        expected[:, :, 16 * y : 16 * y + 16, 16 * z : 16 * z + 16] = patches[:, i].view(2, 3, 16, 16)
    assert torch.allclose(with_it, expected, atol=1e-5)


def test_class_tokens_pass_the_norm_behind_the_fusion():
    decoder = TransformerDecoder([8, 8], [16, 16], embed_dim=32, depth=1, num_heads=4).eval()
    maps, prefix, seen = maps_of([16, 16], [8, 8]), 30 * torch.randn(2, 2, 8) + 5, []
    decoder.embed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    answer = decoder(maps, MASK, prefix=prefix)
    tokens = next(one for one in seen if one.shape == prefix.shape)
    assert torch.allclose(tokens, F.layer_norm(prefix, (8,)), atol=1e-4)
    assert torch.allclose(decoder(maps, MASK, prefix=3 * prefix), answer, atol=1e-4)


def test_class_tokens_of_all_maps_are_fused_as_the_cells_are():
    decoder = TransformerDecoder([8, 8, 8], [16] * 3, embed_dim=32, depth=1, num_heads=4).eval()
    maps, seen = maps_of([16] * 3, [8] * 3), []
    prefixes = [torch.randn(2, 2, 8) for _ in maps]
    torch.nn.init.normal_(decoder.fuse.logits)
    decoder.embed.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    decoder(maps, MASK, prefix=prefixes[-1], prefixes=prefixes)
    weights = decoder.fuse.logits.softmax(0)
    expected = weights[2] * prefixes[2]
    for weight, project, one in zip(weights, decoder.fuse.projections, prefixes, strict=False):
        expected = expected + weight * F.linear(one, project.weight[:, :, 0, 0], project.bias)
    tokens = next(one for one in seen if one.shape == expected.shape)
    assert torch.allclose(tokens, F.layer_norm(expected, (8,), eps=1e-6), atol=1e-5)


@pytest.mark.parametrize("other", [None, torch.ones(2, 3, 8)], ids=["none", "more"])
def test_class_tokens_that_not_every_map_has_are_those_of_the_last(other):
    decoder = TransformerDecoder([8, 8], [16, 16], embed_dim=32, depth=1, num_heads=4).eval()
    maps, prefix = maps_of([16, 16], [8, 8]), torch.randn(2, 2, 8)
    alone = decoder(maps, MASK, prefix=prefix)
    assert torch.equal(decoder(maps, MASK, prefix=prefix, prefixes=[other, prefix]), alone)
    assert not torch.equal(decoder(maps, MASK, prefix=prefix, prefixes=[prefix, prefix]), alone)


def test_positions_are_mae_s_x_first():
    width, rows, cols = 16, 3, 5
    found = sincos_positions(width, rows, cols)
    for y in range(rows):
        for x in range(cols):
            for half, place in enumerate((x, y)):
                for i in range(4):
                    angle = torch.tensor(place / 10000 ** (i / 4), dtype=torch.float64)
                    row = found[y * cols + x]
                    assert abs(row[8 * half + i] - angle.sin()) < 1e-6
                    assert abs(row[8 * half + 4 + i] - angle.cos()) < 1e-6
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        sincos_positions(6, 2, 2)


def test_fusion_weights_start_equal_and_sum_to_1():
    decoder = small(FusedLinear)
    weights = decoder.fuse.logits.softmax(0)
    assert torch.allclose(weights, torch.full((4,), 0.25))
    one = FusedLinear([4], [8], mask_token=False)
    features = maps_of([8], [4])
    assert torch.allclose(one(features, MASK), one.decoder(features[0]))


@pytest.mark.parametrize("number", [None, int(MASK.sum())], ids=["counted", "known"])
def test_maps_of_one_grid_are_fused_in_the_shown_cells_alone(number):
    channels = [8, 16, 24]
    decoder = TransformerDecoder(channels, [16, 16, 16], 3, 16, embed_dim=32, depth=1, num_heads=4).eval()
    maps = maps_of([16, 16, 16], channels)
    fused, seen = decoder.fuse(maps), []
    whole = decoder.embed(decoder.fuse_norm(fused.movedim(1, -1))).flatten(1, 2)
    decoder.fuse.register_forward_hook(lambda module, inputs, output: seen.append(output.numel()))
    tokens = decoder.embed_cells(maps, MASK, number)
    shown = ~expand_mask(MASK, 4, 4).flatten(1)
    assert torch.allclose(tokens[shown], whole[shown], atol=1e-6)
    assert tokens[~shown].abs().max() == 0
    assert seen == [24 * int(shown.sum())]


def test_batchnorm_of_a_masked_map_is_over_visible_cells():
    decoder = small(LightDecoder).train()
    norm, features = decoder.densify["0"].norm, maps_of()[3]
    out = norm_visible(norm, features, MASK)
    visible = ~MASK
    picked = features.movedim(1, -1)[visible]  # (cells, 32)
    expected = (picked - picked.mean(0)) / (picked.var(0, correction=0) + 1e-5).sqrt()
    assert torch.allclose(out.movedim(1, -1)[visible], expected, atol=1e-4)
    assert out.movedim(1, -1)[MASK].abs().max() == 0
    assert torch.allclose(norm.running_mean, 0.1 * picked.mean(0), atol=1e-5)


def test_a_light_decoder_is_spark_s_layer_by_layer():
    decoder = small(LightDecoder, mask_token=False).eval()
    maps = maps_of()
    x = decoder.densify["0"].proj(F.batch_norm(maps[3], torch.zeros(32), torch.ones(32)))
    for i, step in enumerate(decoder.steps):
        if 0 < i < 4:
            normal = F.batch_norm(maps[3 - i], torch.zeros(maps[3 - i].shape[1]), torch.ones(maps[3 - i].shape[1]))
            x = x + decoder.densify[str(i)].proj(normal)
        x = step(x)
    assert [type(layer) for layer in decoder.steps[0]] == [
        nn.ConvTranspose2d,
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU6,
        nn.Conv2d,
        nn.BatchNorm2d,
    ]
    assert decoder.densify["0"].proj.kernel_size == (1, 1)
    assert decoder.densify["1"].proj.kernel_size == (3, 3)
    assert isinstance(LightDecoder([64], [4], width=64).densify["0"].proj, nn.Identity)
    assert torch.allclose(decoder(maps, MASK), decoder.proj(x), atol=1e-6)


def test_maps_that_do_not_lead_to_the_target_are_one_sentence():
    with pytest.raises(ValueError, match=r"maps of 14 px a cell do not lead to a target of 1 px"):
        LightDecoder([8], [14])
    with pytest.raises(ValueError, match=r"width=50 must be a multiple of 16"):
        LightDecoder([8], [16], width=50)
    for kind in (FusedLinear, TransformerDecoder):
        with pytest.raises(ValueError, match="no whole number of target cells"):
            kind([8], [16], out_stride=32)
    with pytest.raises(ValueError, match="num_heads=5"):
        TransformerDecoder([8], [16], num_heads=5)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (TransformerDecoder, dict(num_heads=0)),
        (TransformerDecoder, dict(embed_dim="32")),
        (TransformerDecoder, dict(depth=-1)),
        (TransformerDecoder, dict(depth=True)),
        (LightDecoder, dict(width=0)),
        (LightDecoder, dict(width=768.0)),
    ],
)
def test_sizes_of_a_decoder_that_are_no_whole_numbers_are_one_sentence(kind, given):
    with pytest.raises(ValueError, match=rf"{kind.__name__}: {next(iter(given))}=.* must be a whole number"):
        kind([8], [16], **given)


@pytest.mark.parametrize("decoder", [LinearDecoder(8, 16), LinearDecoder, None, 3, ["linear"]])
def test_a_decoder_is_made_from_a_name_or_a_config(decoder):
    message = r"from a name \(linear, .*\) or a config .*, not from a [A-Za-z]+$"
    with pytest.raises(ValueError, match=message):
        make_decoder(decoder, [8], [16], 3, 1)
    with pytest.raises(ValueError, match=message):
        scales(decoder)


def test_decoders_of_one_map_get_a_token_from_the_adapter():
    decoder = EachMap(LinearDecoder, [8, 16], [8, 16], 3, 1, mask_token=True)
    assert len(decoder) == 2
    maps = maps_of([8, 16], [8, 16])
    noise = [torch.where(expand_mask(MASK, *m.shape[-2:]), torch.nan, m) for m in maps]
    assert torch.equal(decoder(maps, MASK), decoder(noise, MASK))
    assert decoder(maps, MASK).shape == (2, 3, 64, 64)


def test_a_target_coarser_than_the_map_is_answered_by_the_mean_of_its_cells():
    decoder = EachMap(LinearDecoder, [8], [8], 5, 32)
    features = maps_of([8], [8])
    expected = F.avg_pool2d(F.conv2d(features[0], decoder[0].proj.weight), 4)
    assert torch.allclose(decoder(features, MASK), expected, atol=1e-6)


def transformer(**more):
    return {"type": "TransformerDecoder", "embed_dim": 32, "depth": 1, "num_heads": 4} | more


def scales(decoder, channels=(8, 8, 8, 8), strides=(16, 16, 16, 16), **more):
    cells = [4 * 2**i for i in range(len(channels))]
    return EachScale(list(channels), list(strides), 12, 4, **{"decoder": decoder, "target_cells": cells} | more)


@pytest.mark.parametrize("decoder", ["linear", "conv_neck", transformer()], ids=["linear", "conv_neck", "transformer"])
@pytest.mark.parametrize("strides", [(16, 16, 16, 16), (4, 8, 16, 32)], ids=["one", "four"])
def test_each_scale_follows_from_its_own_map_alone_and_not_from_hidden_cells(decoder, strides):
    model, maps = scales(decoder, strides=strides), maps_of(strides, (8, 8, 8, 8))
    answer = model(maps, MASK)
    assert answer.shape == (2, 12, 16, 16)
    for i, times in enumerate((1, 2, 4, 8)):
        changed = [m + torch.randn_like(m) * (i == j) for j, m in enumerate(maps)]
        differs = (model(changed, MASK) != answer).flatten(2).any(-1).any(0)
        assert differs.tolist() == [c // 3 == i for c in range(12)]
        own = answer[:, 3 * i : 3 * i + 3]
        coarse = own[..., ::times, ::times]
        assert torch.equal(own, coarse.repeat_interleave(times, 2).repeat_interleave(times, 3))
    noise = [torch.where(expand_mask(MASK, *m.shape[-2:]), torch.full_like(m, 7.0), m) for m in maps]
    assert torch.equal(model(noise, MASK), answer)


def test_every_map_and_every_parameter_of_the_scales_gets_a_gradient():
    model = scales(transformer())
    maps = [m.requires_grad_() for m in maps_of((16,) * 4, (8,) * 4)]
    (model(maps, MASK, prefix=torch.randn(2, 1, 8)) * torch.randn(2, 12, 16, 16)).sum().backward()
    assert all(m.grad.abs().max() > 0 for m in maps)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_the_class_token_takes_part_in_the_last_scale_through_the_last_norm():
    model, maps, prefix = scales(transformer()).eval(), maps_of((16,) * 4, (8,) * 4), torch.randn(2, 1, 8)
    without, with_it = model(maps, MASK), model(maps, MASK, prefix=prefix)
    assert torch.equal(with_it[:, :9], without[:, :9]) and not torch.equal(with_it[:, 9:], without[:, 9:])
    assert torch.allclose(model(maps, MASK, prefix=3 * prefix + 1), with_it, atol=1e-4)  # LayerNorm takes that back


def test_each_map_s_class_token_takes_part_in_its_own_scale():
    model, maps = scales(transformer()).eval(), maps_of((16,) * 4, (8,) * 4)
    prefixes = [torch.randn(2, 1, 8) for _ in maps]
    answer = model(maps, MASK, prefix=prefixes[-1], prefixes=prefixes)
    for i in range(4):
        changed = [torch.randn(2, 1, 8) if i == j else one for j, one in enumerate(prefixes)]
        differs = (model(maps, MASK, prefix=changed[-1], prefixes=changed) != answer).flatten(2).any(-1).any(0)
        assert differs.tolist() == [c // 3 == i for c in range(12)]


def test_a_coarse_scale_is_the_mean_of_the_cells_of_a_finer_map():
    model = scales("linear", [8], [16], target_cells=[32], mask_token=False)
    (features,) = maps_of([16], [8])
    expected = F.avg_pool2d(model.decoders[0]([model.norms[0](features)], MASK), 2)
    assert torch.allclose(model([features], MASK)[..., ::8, ::8], expected, atol=1e-6)


def test_scales_that_do_not_go_with_the_maps_are_one_sentence():
    with pytest.raises(ValueError, match=r"2 maps do not go with a target of 12 channels and scales of \[4\] px"):
        scales("linear", [8, 8], [16, 16], target_cells=[4])
    with pytest.raises(ValueError, match="5 maps do not go with a target of 12 channels"):
        scales("linear", [8] * 5, [16] * 5)
    with pytest.raises(ValueError, match=r"4 maps do not go .* scales of \[\] px"):
        scales("linear", target_cells=None)
    with pytest.raises(ValueError, match=r"target_cells=\[6\] must be multiples of the target's 4 px"):
        scales("linear", [8], [16], target_cells=[6])
    with pytest.raises(ValueError, match="decoder='linaer' is not known"):
        scales("linaer")
    for cells in (8, True, [], "auto", [4, 8, 0, 32], [4, 8, True, 32], [4.0, 8, 16, 32]):
        with pytest.raises(ValueError, match=r"EachScale: (target_cells=|4 maps do not go)"):
            scales("linear", target_cells=cells)


def test_decoders_inside_the_scales_are_told_how_many_cells_are_hidden(monkeypatch):
    told, shown = [], light.shown_cells
    monkeypatch.setattr(light, "shown_cells", lambda mask, grid, known: told.append(known) or shown(mask, grid))
    scales({"type": "LightDecoder", "width": 32})(maps_of((16,) * 4, (8,) * 4), MASK, hidden_cells=4)
    assert told == [4] * 4
    scales("linear")(maps_of((16,) * 4, (8,) * 4), MASK, hidden_cells=4)

"""Visible statistics: equal to dropping the hidden tokens, nothing without a mask, and nothing on a ResNet."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from a2mim.encoder import MaskedEncoder
from a2mim.masking.cells import pool_mask

TINY = {  # name -> what makes it small
    "xcit_nano_12_p16_224": dict(depth=2, embed_dim=32),
    "xvit_tiny_p16_224": dict(depth=2, embed_dim=32, eta=0.7),
    "linglo_b0": dict(embed_dims=(8, 16, 20, 24), num_heads=(1, 2, 2, 3)),
}
named = pytest.mark.parametrize("name", TINY)


@functools.cache
def built(name: str, visible_stats: bool = True, token: str = "add") -> MaskedEncoder:
    """Small, with attention that is not close to uniform; shared between tests, which copy it before they change it."""
    torch.manual_seed(0)
    arguments = dict(img_size=64, token=token, visible_stats=visible_stats, model_args=TINY[name])
    encoder = MaskedEncoder(name, **arguments).eval()
    generator = torch.Generator().manual_seed(0)
    for key, parameter in encoder.model.named_parameters():
        if "attn" in key:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return encoder


def some_images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def some_mask(cells: int = 4) -> Tensor:
    return torch.rand(2, cells, cells, generator=torch.Generator().manual_seed(2)) < 0.5


def attention_calls(encoder: MaskedEncoder, images: Tensor, mask: Tensor | None) -> list[tuple]:
    """(name, module, tokens, output) of every attention over patch tokens, in order."""
    calls, handles = [], []
    for key, module in encoder.model.named_modules():
        if key.endswith(".attn") and not key.startswith("cls_attn"):
            hook = lambda m, i, o, key=key: calls.append((key, m, i[-1], o))  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        encoder(images, mask)
    for handle in handles:
        handle.remove()
    return calls


def alone(module, queries: Tensor, tokens: Tensor) -> Tensor:
    """What attention to `tokens` (M, D) and no others gives `queries` (1, D), from its equations."""
    kind = type(module).__name__
    if kind == "XNSA":
        return module(queries[None], tokens[None])[0]
    heads = module.num_heads
    width = tokens.shape[1] // heads
    split = lambda t: [t[:, h * width : (h + 1) * width] for h in range(heads)]  # noqa: E731
    if kind == "XCA":
        parts = [F.linear(t, module.qkv.weight, module.qkv.bias).chunk(3, dim=1) for t in (tokens, queries)]
        (q, k, _), (_, _, v) = [[split(p) for p in part] for part in parts]
        joined = []
        for h in range(heads):
            unit = [m[h] / m[h].norm(dim=0) for m in (q, k)]  # each channel, over the tokens
            attention = (unit[0].T @ unit[1] * module.temperature[h, 0, 0]).softmax(dim=1)
            joined.append(v[h] @ attention.T)
        return module.proj(torch.cat(joined, dim=1))
    keys, _ = F.linear(tokens, module.kv.weight, module.kv.bias).chunk(2, dim=1)
    _, values = F.linear(queries, module.kv.weight, module.kv.bias).chunk(2, dim=1)
    joined = []
    for h, (key, value) in enumerate(zip(split(keys), split(values), strict=True)):
        weights = (key @ module.saliency[h] / width**0.5 + module.saliency_bias[h]).softmax(dim=0)
        joined.append(F.gelu(value) * (weights @ key))
    return module.proj(torch.cat(joined, dim=1))


def side_of(tokens: Tensor) -> int:
    return round(tokens.shape[1] ** 0.5)


@named
def test_every_token_meets_the_summary_of_the_visible_tokens_alone(name):
    mask = some_mask()
    mask[:, 2:, 2:] = mask[:, 2:3, 2:3]  # whole 32 px cells somewhere, so that the coarsest map shows something
    mask[:, :2, :2] = False
    calls = attention_calls(built(name), some_images(), mask)
    assert len(calls) == (7 if name.startswith("linglo") else 2)
    for key, module, tokens, output in calls:
        side = side_of(tokens)
        hidden = pool_mask(mask, (side, side), (64 / side, 64 / side), (64, 64)).flatten(1).float()
        for image in range(2):
            if not ((hidden[image] == 0) | (hidden[image] == 1)).all():
                continue
            subset = tokens[image, hidden[image] == 0]
            for token in range(tokens.shape[1]):
                expected = alone(module, tokens[image, token : token + 1], subset)
                torch.testing.assert_close(output[image, token : token + 1], expected, rtol=1e-4, atol=1e-5, msg=key)


@named
@pytest.mark.parametrize("img_size", [(64, 64), (64, 96), (72, 72)])
def test_a_token_counts_by_its_visible_share_as_so_many_copies_of_it_would(name, img_size):
    """Cells of 8 px under tokens of 4 to 32, on grids that overhang the image too."""
    torch.manual_seed(0)
    encoder = MaskedEncoder(name, img_size=img_size, visible_stats=True, model_args=TINY[name]).eval()
    height, width = img_size
    mask, partial = torch.rand(1, height // 8, width // 8) < 0.7, 0
    for key, module, tokens, output in attention_calls(encoder, torch.randn(1, 3, *img_size), mask):
        stride = next(s for s in (4, 8, 16, 32) if math.ceil(height / s) * math.ceil(width / s) == tokens.shape[1])
        grid = math.ceil(height / stride), math.ceil(width / stride)
        shares = 1 - pool_mask(mask, grid, (stride, stride), img_size)[0].flatten().float()
        copies = (16 * shares).round().long()
        torch.testing.assert_close(copies / 16, shares)
        expected = alone(module, tokens[0, :1], tokens[0].repeat_interleave(copies, dim=0))
        torch.testing.assert_close(output[0, :1], expected, rtol=1e-4, atol=1e-5, msg=key)
        partial += ((shares > 0) & (shares < 1)).sum()
    assert partial > 0


@named
def test_a_network_of_attention_alone_gives_visible_tokens_what_it_gives_them_without_the_others(name):
    """With local interaction and convolution layers off, visible tokens know of the others by the sums only."""
    encoder, images, mask = copy.deepcopy(built(name)), some_images(), some_mask()
    units = encoder.model.stages[2].units if name.startswith("linglo") else encoder.model.blocks
    for unit in units:
        if name.startswith("linglo"):
            torch.nn.init.zeros_(unit.conv[-1].weight), torch.nn.init.zeros_(unit.conv[-1].bias)
        else:
            torch.nn.init.zeros_(unit.gamma3)
    seen = []
    units[0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    units[-1].register_forward_hook(lambda m, inputs, output: seen.append(output))
    with torch.no_grad():
        encoder.tokens[0].zero_()
        encoder(images, mask)
        first, last = (t.flatten(2).transpose(1, 2) if t.ndim == 4 else t for t in seen)
        for image in range(2):
            shown = ~mask[image].flatten()
            tokens = first[image, shown][None]
            for unit in units:
                if name.startswith("linglo"):
                    tokens = unit(tokens.transpose(1, 2)[..., None]).flatten(2).transpose(1, 2)
                else:
                    tokens = unit(tokens, tokens.shape[1], 1)
            torch.testing.assert_close(last[image, shown], tokens[0], rtol=1e-4, atol=1e-5)


@named
def test_nothing_changes_without_a_mask_or_with_an_empty_one(name):
    images, none = some_images(), torch.zeros(2, 4, 4, dtype=torch.bool)
    with_stats, without = built(name), built(name, visible_stats=False)
    assert torch.equal(with_stats(images)[0], without(images)[0])
    assert torch.equal(with_stats.model(images), without.model(images))
    torch.testing.assert_close(with_stats(images, none)[0], without(images, none)[0])
    assert not torch.allclose(with_stats(images, some_mask())[0], without(images, some_mask())[0])
    assert torch.equal(with_stats.model(images), without.model(images))


@named
def test_the_state_dictionary_and_the_parameters_are_the_same(name):
    with_stats, without = built(name).state_dict(), built(name, visible_stats=False).state_dict()
    assert list(with_stats) == list(without)
    assert all(torch.equal(a, b) for a, b in zip(with_stats.values(), without.values(), strict=True))
    assert built(name).frozen == built(name, visible_stats=False).frozen


@named
def test_an_image_that_shows_nothing_keeps_the_sums_over_all_its_tokens(name):
    mask = some_mask()
    mask[0] = True
    calls = [attention_calls(built(name, stats), some_images(), mask)[0] for stats in (True, False)]
    assert torch.equal(calls[0][3][0], calls[1][3][0]) and not torch.allclose(calls[0][3][1], calls[1][3][1])
    encoder = copy.deepcopy(built(name))
    encoder(some_images(), mask)[0].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


@named
def test_checkpointing_in_backward_leaves_the_same_tokens_out_again(name):
    gradients = []
    for checkpointing in (False, True):
        encoder = copy.deepcopy(built(name))
        encoder.model.set_grad_checkpointing(checkpointing)
        encoder(some_images().requires_grad_(), some_mask())[0].square().sum().backward()
        gradients.append({key: p.grad for key, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


@named
def test_a_deep_copy_asks_its_own_mask(name):
    encoder, images, mask = built(name), some_images(), some_mask()
    other = copy.deepcopy(encoder)
    expected = encoder(images, mask)[0]
    encoder._mask = None
    assert torch.equal(other(images, mask)[0], expected)


@named
def test_it_compiles_into_one_graph_and_stays_close_in_bf16(name):
    encoder, images = built(name), some_images()
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    for mask in (some_mask(), ~some_mask()):
        torch.testing.assert_close(compiled(images, mask)[0], encoder(images, mask)[0])
    exact = encoder(images, some_mask())[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(images, some_mask())[0].float()
    assert (rounded - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_an_architecture_without_such_sums_is_refused_in_one_sentence(name):
    with pytest.raises(ValueError) as error:
        MaskedEncoder(name, img_size=64, visible_stats=True)
    assert all(word in str(error.value) for word in (name, "visible_stats", "XCiT, X-ViT and LinGlo"))
    assert "\n" not in str(error.value)

"""timm's XCiT and CrossViT, which we train, against the equations of their papers, written token by token.

XCiT: https://arxiv.org/abs/2106.09681, sections 3.2 and 3.3 and its published code's order of layers; CrossViT:
https://arxiv.org/abs/2103.14899, equations 1 to 4. The references read the weights and nothing else of timm.
"""

import functools
import math

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2mim.encoder import MaskedEncoder


@functools.cache
def xcit(name: str = "xcit_nano_12_p16_224"):
    return randomised(timm.create_model(name, embed_dim=16, depth=2, num_heads=2, num_classes=5))


@functools.cache
def crossvit():
    small = dict(embed_dim=(8, 12), num_heads=(2, 3), depth=((1, 2, 0), (1, 1, 0)), num_classes=5)
    return randomised(timm.create_model("crossvit_tiny_240", **small))


def randomised(model: nn.Module) -> nn.Module:
    """Float64, with no weight, bias or statistic at a value that hides it."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    for key, buffer in model.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.5)
    return model


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layer_norm(vector: Tensor, norm) -> Tensor:
    """Of one token (D,)."""
    centred = vector - vector.sum() / len(vector)
    return centred / (centred.square().sum() / len(vector) + 1e-6).sqrt() * norm.weight + norm.bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def affine(vector: Tensor, linear) -> Tensor:
    return linear.weight @ vector + linear.bias


def each(function, tokens: Tensor) -> Tensor:
    """function of every token of (N, D)."""
    return torch.stack([function(token) for token in tokens])


def mlp(tokens: Tensor, norm, layers) -> Tensor:
    return each(lambda t: affine(gelu(affine(layer_norm(t, norm), layers.fc1)), layers.fc2), tokens)


def xca(tokens: Tensor, attention) -> Tensor:
    """Cross-covariance attention: (N, D) -> (N, D), one pair of channels at a time."""
    number, dim = tokens.shape
    width, result = dim // attention.num_heads, torch.empty_like(tokens)
    queries, keys, values = each(lambda t: affine(t, attention.qkv), tokens).split(dim, dim=1)
    for h in range(attention.num_heads):
        for i in range(h * width, (h + 1) * width):
            scores = []
            for j in range(h * width, (h + 1) * width):
                query, key = queries[:, i], keys[:, j]  # one channel over all tokens
                cosine = sum(query[n] * key[n] for n in range(number)) / (query.norm() * key.norm())
                scores.append(attention.temperature[h, 0, 0] * cosine)
            weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
            result[:, i] = sum(w * values[:, h * width + j] for j, w in enumerate(weights))
    return each(lambda t: affine(t, attention.proj), result)


def depthwise(image: Tensor, conv) -> Tensor:
    """3 x 3, one channel at a time: (D, h, w) -> the same."""
    result = torch.empty_like(image)
    for d, y, x in torch.cartesian_prod(*map(torch.arange, image.shape)).tolist():
        total = conv.bias[d].clone()
        for dy, dx in torch.cartesian_prod(torch.arange(3), torch.arange(3)).tolist():
            row, column = y + dy - 1, x + dx - 1
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                total += conv.weight[d, 0, dy, dx] * image[d, row, column]
        result[d, y, x] = total
    return result


def batch_norm(image: Tensor, norm) -> Tensor:
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    return (image - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def lpi(tokens: Tensor, layers, height: int, width: int) -> Tensor:
    """Local patch interaction: depthwise, GELU, BatchNorm, depthwise."""
    image = tokens.T.reshape(-1, height, width)
    image = depthwise(batch_norm(gelu(depthwise(image, layers.conv1)), layers.bn), layers.conv2)
    return image.flatten(1).T


def xcit_block(tokens: Tensor, block, height: int, width: int) -> Tensor:
    tokens = tokens + block.gamma1 * xca(each(lambda t: layer_norm(t, block.norm1), tokens), block.attn)
    tokens = tokens + block.gamma3 * lpi(
        each(lambda t: layer_norm(t, block.norm3), tokens), block.local_mp, height, width
    )
    return tokens + block.gamma2 * mlp(tokens, block.norm2, block.mlp)


def test_xcits_blocks_are_cross_covariance_then_local_interaction_then_mlp():
    tokens = some(1, 12, 16)
    for block in xcit().blocks:
        expected = xcit_block(tokens[0], block, 3, 4)
        tokens = block(tokens, 3, 4)
        torch.testing.assert_close(tokens[0], expected, rtol=1e-9, atol=1e-9)


def test_xcits_fused_attention_is_the_same():
    block, tokens = xcit().blocks[0], some(1, 12, 16)
    before, expected = block.attn.fused_attn, xca(tokens[0], block.attn)
    try:
        for fused in (False, True):
            block.attn.fused_attn = fused
            torch.testing.assert_close(block.attn(tokens)[0], expected, rtol=1e-9, atol=1e-9)
    finally:
        block.attn.fused_attn = before


def test_xcits_stem_halves_by_convolutions_and_rounds_the_grid_up():
    for name, halvings in (("xcit_nano_12_p16_224", 4), ("xcit_nano_12_p8_224", 3)):
        model, image = xcit(name), some(1, 3, 40, 72)
        layers = model.patch_embed.proj
        assert [type(layer) for layer in layers] == [nn.Sequential, nn.GELU] * (halvings - 1) + [nn.Sequential]
        expected = image
        for i, (conv, norm) in enumerate(layers[::2]):
            assert conv.bias is None
            expected = F.conv2d(expected, conv.weight, stride=2, padding=1)
            expected = batch_norm(expected[0], norm)[None]
            expected = gelu(expected) if i < halvings - 1 else expected
        tokens, grid = model.patch_embed(image)
        assert grid == (math.ceil(40 / 2**halvings), math.ceil(72 / 2**halvings))
        torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2), rtol=1e-9, atol=1e-9)


def test_xcits_positions_are_sines_of_rows_then_columns():
    positions, grid = xcit().pos_embed, (3, 4)
    waves = positions.token_projection.in_channels // 2
    encoding = torch.empty(2 * waves, *grid, dtype=torch.float64)
    for y, x, k in torch.cartesian_prod(*map(torch.arange, (*grid, waves))).tolist():
        for offset, place, size in ((0, y, grid[0]), (waves, x, grid[1])):
            angle = 2 * math.pi * (place + 1) / size / 10_000 ** (2 * (k // 2) / waves)
            encoding[offset + k, y, x] = math.cos(angle) if k % 2 else math.sin(angle)
    expected = F.conv2d(encoding[None], positions.token_projection.weight, positions.token_projection.bias)
    torch.testing.assert_close(positions(1, *grid), expected, rtol=1e-5, atol=1e-5)  # timm's run in float32


def test_the_encoder_that_we_train_runs_those_blocks():
    encoder = MaskedEncoder("xcit_nano_12_p16_224", img_size=64).double().eval()
    seen = {}
    for i, block in enumerate(encoder.model.blocks):
        block.register_forward_hook(lambda m, inputs, output, i=i: seen.update({i: (inputs[0], output)}))
    with torch.no_grad():
        encoder(some(1, 3, 64, 64), torch.eye(2, dtype=torch.bool)[None])
        for i in (0, 11):
            expected = xcit_block(seen[i][0][0], encoder.model.blocks[i], 4, 4)
            torch.testing.assert_close(seen[i][1][0], expected, rtol=1e-5, atol=1e-5)


def softmax_attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """(M, D), (N, D), (N, D) -> (M, D): one query of one head at a time."""
    width, result = queries.shape[1] // heads, torch.empty_like(queries)
    for h in range(heads):
        channels = slice(h * width, (h + 1) * width)
        for m, query in enumerate(queries[:, channels]):
            weights = (keys[:, channels] @ query / math.sqrt(width)).exp()
            result[m, channels] = weights @ values[:, channels] / weights.sum()
    return result


def transformer_block(tokens: Tensor, block) -> Tensor:
    """Equation 1: y = x + MSA(LN x); z = y + FFN(LN y)."""
    normed, attention = each(lambda t: layer_norm(t, block.norm1), tokens), block.attn
    queries, keys, values = each(lambda t: affine(t, attention.qkv), normed).chunk(3, dim=1)
    met = softmax_attention(queries, keys, values, attention.num_heads)
    tokens = tokens + each(lambda t: affine(t, attention.proj), met)
    return tokens + mlp(tokens, block.norm2, block.mlp)


def cross_attention(class_token: Tensor, patches: Tensor, block) -> Tensor:
    """Equations 2 to 4: the class token (D,) of one branch asks itself and the other branch's patches (N, D)."""
    normed = each(lambda t: layer_norm(t, block.norm1), torch.cat([class_token[None], patches]))
    attention = block.attn
    queries = affine(normed[0], attention.wq)[None]
    keys, values = (each(lambda t, w=w: affine(t, w), normed) for w in (attention.wk, attention.wv))
    return class_token + affine(softmax_attention(queries, keys, values, attention.num_heads)[0], attention.proj)


def project(vector: Tensor, layers) -> Tensor:
    """The functions f and g of the paper, in its code LN, GELU, linear."""
    return affine(gelu(layer_norm(vector, layers[0])), layers[2])


def multi_scale_block(branches: list[Tensor], block) -> list[Tensor]:
    """Both branches through their encoders, then each class token to the other branch and back."""
    for i, encoder in enumerate(block.blocks):
        for layer in encoder:
            branches[i] = transformer_block(branches[i], layer)
    results = []
    for i, (own, other) in enumerate((branches, branches[::-1])):
        class_token = project(own[0], block.projs[i])
        (fusion,) = block.fusion[i] if isinstance(block.fusion[i], nn.Sequential) else (block.fusion[i],)
        class_token = cross_attention(class_token, other[1:], fusion)
        results.append(torch.cat([project(class_token, block.revert_projs[i])[None], own[1:]]))
    return results


def test_crossvits_blocks_fuse_through_the_class_tokens_both_ways():
    branches = [some(1, 10, 8), some(1, 7, 12)]
    for block in crossvit().blocks:
        expected = multi_scale_block([b[0] for b in branches], block)
        branches = block(branches)
        for branch, slow in zip(branches, expected, strict=True):
            torch.testing.assert_close(branch[0], slow, rtol=1e-9, atol=1e-9)


def test_crossvit_reads_two_sizes_and_averages_the_logits_of_both_class_tokens():
    model, image = crossvit(), some(1, 3, 240, 240)
    resized = F.interpolate(image, (224, 224), mode="bicubic", align_corners=False)
    branches = []
    for i, (pixels, side) in enumerate(((image, 12), (resized, 16))):
        proj = model.patch_embed[i].proj
        patches = [
            proj.bias + (pixels[0, None, :, y : y + side, x : x + side] * proj.weight).sum((1, 2, 3))
            for y in range(0, pixels.shape[2], side)
            for x in range(0, pixels.shape[3], side)
        ]
        class_token = getattr(model, f"cls_token_{i}")[0]
        branches.append(torch.cat([class_token, torch.stack(patches)])[None] + getattr(model, f"pos_embed_{i}"))
    assert [b.shape[1] for b in branches] == [401, 197]
    for block in model.blocks:
        branches = block(branches)
    logits = [affine(layer_norm(branch[0, 0], model.norm[i]), model.head[i]) for i, branch in enumerate(branches)]
    torch.testing.assert_close(model(image)[0], (logits[0] + logits[1]) / 2, rtol=1e-9, atol=1e-9)

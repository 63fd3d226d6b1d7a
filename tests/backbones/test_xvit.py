"""X-ViT's attention against the equations of its paper written token by token, and the model around it."""

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from a2mim.backbones.xvit import XNSA, Block, ClassBlock, xnorm_attention

VARIANTS = {  # million parameters: as published, and with projections per head
    "xvit_tiny_p16_224": (10.0, 9.99),
    "xvit_small_p16_224": (20.7, 20.88),
    "xvit_medium_p16_224": (37.3, 37.66),
    "xvit_base_p16_224": (63.7, 66.57),
}


def some_qkv(tokens: int = 7, heads: int = 3, width: int = 5, dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, tokens, width, generator=generator, dtype=dtype) for _ in range(3)]


def slow_attention(queries: Tensor, keys: Tensor, values: Tensor, gamma: Tensor) -> Tensor:
    """N x N form of arXiv 2109.14382: every query meets every key, then the two norms are divided out."""
    result = torch.empty_like(queries)
    for b, h, n, j in torch.cartesian_prod(*map(torch.arange, queries.shape)).tolist():
        query, column = queries[b, h, n], values[b, h, :, j]
        row = torch.stack([query @ key for key in keys[b, h]])  # of the N x N matrix
        norm = sum(key * value for key, value in zip(keys[b, h], column, strict=True)).norm()
        result[b, h, n, j] = gamma[h] ** 2 * (row @ column) / (query.norm() * norm)
    return result


def test_the_attention_equals_its_n_by_n_form():
    gamma = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)
    torch.testing.assert_close(xnorm_attention(*some_qkv(), gamma), slow_attention(*some_qkv(), gamma))


def test_the_attention_ignores_positive_scales_copies_of_all_tokens_and_the_order_of_keys():
    (queries, keys, values), gamma = some_qkv(), torch.ones(3, dtype=torch.float64)
    expected, order = xnorm_attention(queries, keys, values, gamma), torch.randperm(7)
    torch.testing.assert_close(xnorm_attention(3 * queries, 0.2 * keys, 50 * values, gamma), expected)
    twice = [torch.cat([t, t], dim=2) for t in (queries, keys, values)]
    torch.testing.assert_close(xnorm_attention(*twice, gamma)[:, :, :7], expected)
    torch.testing.assert_close(xnorm_attention(queries, keys[:, :, order], values[:, :, order], gamma), expected)
    assert not torch.allclose(xnorm_attention(queries, keys[:, :, order], values, gamma), expected)


def test_no_output_exceeds_gamma_squared():
    gamma = torch.tensor([1.0, 2.0, 0.1], dtype=torch.float64)
    largest = xnorm_attention(*some_qkv(), gamma).abs().amax((0, 2, 3))
    assert (largest <= gamma**2).all() and (largest > 0.5 * gamma**2).all()


def test_tokens_of_zeros_give_zeros_and_finite_gradients():
    queries, keys, values = (t.zero_().requires_grad_() for t in some_qkv(dtype=torch.float32))
    output = xnorm_attention(queries, keys, values, torch.ones(3))
    output.sum().backward()
    assert not output.any() and all(t.grad.isfinite().all() for t in (queries, keys, values))


def test_large_inputs_in_half_precision_stay_exact_over_many_tokens():
    for dtype in (torch.float16, torch.bfloat16):
        queries, keys, values = (3e4 * t.sign().to(dtype) for t in some_qkv(tokens=12_544, heads=1))
        keys, values = keys.abs(), values.abs()  # so that nothing cancels: a half-precision sum would be infinite
        output = xnorm_attention(queries, keys, values, torch.ones(1))
        exact = xnorm_attention(*(t.double() for t in (queries, keys, values)), torch.ones(1))
        torch.testing.assert_close(output, exact.float(), rtol=1e-4, atol=1e-5)


def test_autocast_does_not_reach_the_attention():
    qkv, gamma = some_qkv(dtype=torch.float32), torch.ones(3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = xnorm_attention(*qkv, gamma)
    assert torch.equal(inside, xnorm_attention(*qkv, gamma))


def slow_projection(module, tokens: Tensor, part: int, head: int) -> Tensor:
    """(N, D) -> (N, D / heads): one of a head's vectors, read from that head's slice of the tokens."""
    width = tokens.shape[1] // module.num_heads
    columns = slice(part * width, (part + 1) * width)
    bias = module.bias.reshape(module.num_heads, -1)[head, columns]
    return tokens[:, head * width : (head + 1) * width] @ module.weight[head][:, columns] + bias


def test_every_head_projects_its_own_slice_and_the_heads_are_joined_in_order():
    torch.manual_seed(0)
    attention, tokens = XNSA(12, 3).double(), torch.randn(1, 6, 12, dtype=torch.float64)
    torch.nn.init.normal_(attention.q.bias), torch.nn.init.normal_(attention.kv.bias)
    heads = []
    for head in range(3):
        queries = slow_projection(attention.q, tokens[0, :2], 0, head)
        keys, values = (slow_projection(attention.kv, tokens[0], part, head) for part in (0, 1))
        heads.append(
            slow_attention(*(t[None, None] for t in (queries, keys, values)), attention.gamma[head : head + 1])
        )
    expected = attention.proj(torch.cat(heads, dim=-1)[0])
    torch.testing.assert_close(attention(tokens[:, :2], tokens), expected)


def test_with_full_projections_every_head_reads_every_channel():
    torch.manual_seed(0)
    tokens, changed = torch.randn(1, 6, 12), 3  # a channel of the first of three heads
    for qkv, heads_that_differ in (("per_head", 1), ("full", 3)):
        attention = XNSA(12, 3, qkv)
        other = tokens.clone()
        other[:, :, changed] += 1
        queries = [attention.q(t)[0] for t in (tokens, other)]
        assert (queries[0] != queries[1]).any(dim=-1).any(dim=-1).sum() == heads_that_differ


def test_a_block_adds_attention_then_convolution_then_mlp_each_scaled():
    torch.manual_seed(0)
    block, x = Block(8, 2, 4.0, "per_head", 1.0, 0.0, 0.0).eval(), torch.randn(2, 6, 8)
    for gamma in (block.gamma1, block.gamma3, block.gamma2):
        torch.nn.init.normal_(gamma)
    expected = x + block.gamma1 * block.attn(block.norm1(x), block.norm1(x))
    image = block.norm3(expected).transpose(1, 2).reshape(2, 8, 2, 3)
    local = block.local_mp
    image = local.conv2(local.bn(F.gelu(local.conv1(image))))
    expected = expected + block.gamma3 * image.flatten(2).transpose(1, 2)
    expected = expected + block.gamma2 * block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x, 2, 3), expected)


def test_a_class_block_changes_the_class_token_only_and_reads_all_tokens():
    torch.manual_seed(0)
    block = ClassBlock(8, 2, 4.0, "per_head", 1.0, 0.0)
    tokens = torch.randn(2, 6, 8)
    output = block(tokens)
    assert torch.equal(output[:, 1:], tokens[:, 1:])
    normed = block.norm1(tokens)
    row = tokens[:, :1] + block.gamma1 * block.attn(normed, normed)[:, :1]
    torch.testing.assert_close(output[:, :1], row + block.gamma2 * block.mlp(block.norm2(row)))


def test_the_variants_have_their_published_sizes():
    for name, (published, computed) in VARIANTS.items():
        with torch.device("meta"):
            millions = sum(p.numel() for p in timm.create_model(name).parameters()) / 1e6
        assert round(millions, 2) == computed
        assert abs(millions / published - 1) < (0.05 if "base" in name else 0.01)


def test_full_projections_miss_the_published_sizes():
    with torch.device("meta"):
        model = timm.create_model("xvit_small_p16_224", qkv="full")
    assert sum(p.numel() for p in model.parameters()) / 1e6 > 1.2 * VARIANTS["xvit_small_p16_224"][0]


def test_layer_scale_follows_the_depth():
    for name, depth, eta in (("xvit_small_p16_224", 12, 1.0), ("xvit_tiny_p16_224", 24, 1e-5)):
        model = timm.create_model(name, embed_dim=16, num_heads=2)
        blocks = [*model.blocks, *model.cls_attn_blocks]
        scales = torch.stack([p for block in blocks for key, p in block.named_parameters(recurse=False)])
        assert len(scales) == 3 * depth + 2 * 2 and (scales == eta).all()


def test_positions_are_learned_for_the_image_size_and_bicubic_elsewhere():
    model = timm.create_model("xvit_tiny_p16_224", embed_dim=8, depth=1, num_heads=2, img_size=(48, 72)).eval()
    assert model.pos_embed.shape == (1, 3 * 5, 8)  # 72 / 16 = 4.5, rounded up
    positions = model.pos_embed.reshape(1, 3, 5, 8).permute(0, 3, 1, 2)
    for size, grid in (((48, 72), (3, 5)), ((96, 144), (6, 9))):
        images = torch.randn(1, 3, *size)
        seen = []
        handle = model.blocks[0].register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        model(images)
        handle.remove()
        expected = F.interpolate(positions, grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
        torch.testing.assert_close(seen[0], model.patch_embed(images)[0] + expected)


def test_weights_of_another_size_are_loaded_with_their_positions_interpolated():
    tiny = dict(embed_dim=8, depth=1, num_heads=2, num_classes=0)
    small = timm.create_model("xvit_tiny_p16_224", img_size=(32, 64), **tiny)
    overlay = dict(state_dict=small.state_dict(), input_size=(3, 32, 64), num_classes=0)
    large = timm.create_model(
        "xvit_tiny_p16_224", img_size=(64, 96), pretrained=True, pretrained_cfg_overlay=overlay, **tiny
    )
    positions = small.pos_embed.reshape(1, 2, 4, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(positions, (4, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(large.pos_embed, expected.flatten(2).transpose(1, 2))
    assert torch.equal(large.blocks[0].attn.q.weight, small.blocks[0].attn.q.weight)

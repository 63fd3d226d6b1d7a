"""LinGlo's attention against an N x N attention with equal rows, and the model around it."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from a2mim.backbones.linglo import INTERACTIONS, KeyOnlyAttention, Unit

VARIANTS = {"linglo_b0": (3.4, 3.42), "linglo_b1": (13.1, 13.08), "linglo_b2": (25.4, 25.42)}  # published, computed


def attention_of(interaction: str = "product", dim: int = 12, num_heads: int = 3) -> KeyOnlyAttention:
    torch.manual_seed(0)
    attention = KeyOnlyAttention(dim, num_heads, interaction).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    return attention


def slow_attention(module: KeyOnlyAttention, tokens: Tensor) -> Tensor:
    """Every token attends to every key by an N x N matrix whose rows do not depend on the token. tokens: (N, D)."""
    dim = tokens.shape[1]
    width = dim // module.num_heads
    mapped, heads = F.linear(tokens, module.kv.weight, module.kv.bias), []
    for h in range(module.num_heads):
        keys = mapped[:, h * width : (h + 1) * width]
        values = mapped[:, dim + h * width : dim + (h + 1) * width]
        scores = torch.stack([module.saliency[h] @ key for key in keys]) / width**0.5 + module.saliency_bias[h]
        matrix = scores.expand(len(tokens), -1).softmax(dim=1)
        gate = (1 / (1 + torch.exp(-scores)))[:, None]
        heads.append(
            {
                "product": F.gelu(values) * (matrix @ keys),
                "gate": gate * (matrix @ values) + (1 - gate) * values,
                "broadcast": matrix @ values,
            }[module.interaction]
        )
    return module.proj(torch.cat(heads, dim=1))


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_the_attention_equals_an_n_by_n_attention_with_equal_rows(interaction):
    attention, tokens = attention_of(interaction), torch.randn(2, 7, 12, dtype=torch.float64)
    expected = torch.stack([slow_attention(attention, image) for image in tokens])
    torch.testing.assert_close(attention(tokens), expected)


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_the_attention_permutes_with_its_tokens_and_ignores_copies_of_all(interaction):
    attention, tokens, order = attention_of(interaction), torch.randn(2, 7, 12, dtype=torch.float64), torch.randperm(7)
    output = attention(tokens)
    torch.testing.assert_close(attention(tokens[:, order]), output[:, order])
    torch.testing.assert_close(attention(torch.cat([tokens, tokens], dim=1))[:, :7], output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_large_scores_stay_finite_and_choose_the_most_salient_key(interaction, dtype):
    attention, tokens = attention_of(interaction), torch.randn(1, 500, 12, dtype=torch.float64)
    attention.saliency.data *= 1e4  # times keys of about 3: beyond the range of float16
    attention, tokens = attention.to(dtype), tokens.to(dtype).requires_grad_()
    output = attention(tokens)
    output.float().sum().backward()
    assert output.isfinite().all() and tokens.grad.isfinite().all()
    exact = slow_attention(attention.double(), tokens[0].double())
    assert (output[0] - exact).norm() / exact.norm() < {torch.float16: 0.01, torch.bfloat16: 0.05}[dtype]


def test_scores_and_their_softmax_keep_float32_under_autocast():
    """A difference of 1e-3 between large scores, below bfloat16's step, decides the softmax."""
    attention = KeyOnlyAttention(2, 1)
    with torch.no_grad():
        attention.kv.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 0]]))
        attention.kv.bias.copy_(torch.tensor([0.0, 0, 100, 100]))
        attention.saliency.copy_(torch.tensor([[10_000.0 * 2**0.5, 2**0.5]]))
        attention.proj.weight.copy_(torch.eye(2))
    tokens = torch.tensor([[[1.0, 8.0], [1.0, 0.0]]])  # scores of 10,008 and 10,000
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(tokens)
    torch.testing.assert_close(output[0, 0].float(), torch.tensor([100.0, 800.0]), rtol=0.01, atol=0)


def test_a_unit_is_a_convolution_layer_then_an_attention_layer_then_an_mlp():
    torch.manual_seed(0)
    unit, x = Unit(8, 2, 4, "product", 0.0, 0.0).eval(), torch.randn(2, 8, 3, 5)
    kinds = ["BatchNorm2d", "Conv2d", "BatchNorm2d", "GELU", "Conv2d", "BatchNorm2d", "GELU", "Conv2d"]
    assert [type(layer).__name__ for layer in unit.conv] == kinds
    assert unit.conv[4].groups == unit.conv[4].in_channels == 16
    tokens = (x + unit.conv(x)).flatten(2).transpose(1, 2)
    tokens = tokens + unit.attn(unit.norm1(tokens))
    tokens = tokens + unit.mlp(unit.norm2(tokens))
    torch.testing.assert_close(unit(x), tokens.transpose(1, 2).reshape(2, 8, 3, 5))


def test_the_variants_have_their_published_sizes_whatever_the_interaction():
    for name, (published, computed) in VARIANTS.items():
        for interaction in INTERACTIONS:
            with torch.device("meta"):
                model = timm.create_model(name, interaction=interaction)
            millions = sum(p.numel() for p in model.parameters()) / 1e6
            assert round(millions, 2) == computed and abs(millions / published - 1) < 0.01


def test_any_resolution_passes_through_four_stages_rounded_up():
    model = timm.create_model("linglo_b0", embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1)).eval()
    for height, width in ((224, 224), (33, 70), (7, 5)):
        maps = model.forward_intermediates(torch.randn(1, 3, height, width), intermediates_only=True)
        assert [m.shape[2:] for m in maps] == [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
        assert all(m.isfinite().all() for m in maps)


def test_initial_values_are_those_of_the_specification():
    model = timm.create_model("linglo_b0")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 2:
            assert 0.015 < parameter.std() < 0.025 and parameter.abs().max() <= 2, name
    pointwise, depthwise = model.stages[2].units[0].conv[1], model.stages[2].units[0].conv[4]
    torch.testing.assert_close(pointwise.weight.std().item(), (2 / 320) ** 0.5, rtol=0.05, atol=0)
    torch.testing.assert_close(depthwise.weight.std().item(), (2 / 9) ** 0.5, rtol=0.05, atol=0)

import pytest
import torch

from a2mim.encoder import insert_token


def slow_insert(features, token, mask, mode, gamma):
    """Reference: one number at a time, from the definitions in A²MIM, section 3."""
    result = features.clone()
    for b, d, h, w in torch.cartesian_prod(*map(torch.arange, features.shape)).tolist():
        z, m = features[b, d, h, w], float(mask[b, h, w])
        hidden = {"add": z + token[d], "replace": token[d], "scaled": gamma[d] * z + token[d]}[mode]
        result[b, d, h, w] = m * hidden + (1 - m) * z
    return result


@pytest.mark.parametrize("mode", ["add", "replace", "scaled"])
@pytest.mark.parametrize("fractional", [False, True])
def test_insert_token_equals_the_slow_loop(mode, fractional):
    torch.manual_seed(0)
    features, token, gamma = torch.randn(2, 3, 4, 5), torch.randn(3), torch.randn(3)
    mask = torch.rand(2, 4, 5) if fractional else torch.rand(2, 4, 5) < 0.5
    expected = slow_insert(features, token, mask, mode, gamma)
    torch.testing.assert_close(insert_token(features, token, mask, mode, gamma), expected)
    shaped = insert_token(features, token.view(1, 3, 1, 1), mask, mode, gamma.view(1, 3, 1, 1))
    torch.testing.assert_close(shaped, expected)


def test_replacing_selects_so_that_hidden_nans_are_gone():
    features, mask = torch.ones(1, 2, 2, 2), torch.tensor([[[True, False], [False, False]]])
    features[0, :, 0, 0] = float("nan")
    assert insert_token(features, torch.zeros(2), mask, "replace").isfinite().all()


def test_features_keep_their_dtype():
    features, mask = torch.ones(1, 2, 2, 2, dtype=torch.bfloat16), torch.ones(1, 2, 2, dtype=torch.bool)
    for kind in (mask, mask.float()):
        assert insert_token(features, torch.ones(2), kind, "scaled", torch.ones(2)).dtype == torch.bfloat16


def test_scaling_without_gamma_is_refused():
    with pytest.raises(ValueError, match="gamma"):
        insert_token(torch.ones(1, 2, 2, 2), torch.ones(2), torch.ones(1, 2, 2, dtype=torch.bool), "scaled")

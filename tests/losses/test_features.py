"""Losses on any grid: hidden cells alone count, and each equals its definition in a loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from a2mim.losses import (
    FourierLoss,
    MaskedCosine,
    MaskedFocalL1,
    MaskedL1,
    MaskedL2,
    MaskedSmoothL1,
    PatchDiscrimination,
)


def case(seed=0, channels=6, grid=(4, 5)):
    generator = torch.Generator().manual_seed(seed)
    recon, target = (torch.randn(3, channels, *grid, generator=generator) for _ in range(2))
    hidden = torch.rand(3, 1, *grid, generator=generator) < 0.6
    return recon, target, hidden


def cells(hidden):
    return [(b, y, x) for b, _, y, x in hidden.nonzero().tolist()]


def slow(loss, recon, target, hidden):
    """The mean over hidden cells of a function of one cell's two vectors."""
    return sum(loss(recon[b, :, y, x], target[b, :, y, x]) for b, y, x in cells(hidden)) / hidden.sum()


@pytest.mark.parametrize(
    ("loss", "cell"),
    [
        (MaskedL2(), lambda p, t: (p - t).square().mean()),
        (MaskedSmoothL1(beta=2.0), lambda p, t: F.smooth_l1_loss(p, t, beta=2.0)),
        (MaskedSmoothL1(), lambda p, t: F.smooth_l1_loss(p, t)),
        (MaskedCosine(), lambda p, t: 1 - (p @ t) / (p.norm() * t.norm())),
    ],
)
def test_each_loss_is_the_mean_over_hidden_cells(loss, cell):
    recon, target, hidden = case()
    assert torch.allclose(loss(recon, target, hidden), slow(cell, recon, target, hidden), atol=1e-6)


@pytest.mark.parametrize("loss", [MaskedL2(), MaskedSmoothL1(), MaskedCosine(), PatchDiscrimination()])
def test_visible_cells_get_no_gradient_and_change_nothing(loss):
    recon, target, hidden = case()
    recon.requires_grad_()
    value = loss(recon, target, hidden)
    value.backward()
    shown = ~hidden.expand_as(recon)
    assert recon.grad[shown].abs().max() == 0
    assert recon.grad[~shown].abs().min() > 0
    other = torch.where(shown, torch.randn_like(target), target)
    assert torch.equal(loss(recon, other, hidden), value)


def test_patch_discrimination_is_the_cross_entropy_among_the_hidden_cells_of_the_image():
    recon, target, hidden = case()
    terms = []
    for b in range(3):
        here = hidden[b, 0].flatten()
        p, t = (F.normalize(x[b].flatten(1)[:, here], dim=0) for x in (recon, target))
        terms.append(F.cross_entropy(p.T @ t / 0.1, torch.arange(int(here.sum())), reduction="sum"))
    expected = 2 * 0.1 * sum(terms) / hidden.sum()
    assert torch.allclose(PatchDiscrimination(0.1)(recon, target, hidden), expected, atol=1e-5)


def test_a_constant_answer_scores_the_logarithm_of_the_number_of_cells():
    _, target, _ = case()
    hidden = torch.ones(3, 1, 4, 5, dtype=torch.bool)
    constant = torch.ones_like(target)
    # above log(20) by what the targets themselves lean to one side
    assert PatchDiscrimination(0.1)(constant, target, hidden) >= 0.2 * math.log(20) - 1e-4
    assert PatchDiscrimination(0.1)(target, target, hidden) < 0.1


@pytest.mark.parametrize("loss", [MaskedL2(), MaskedSmoothL1(), MaskedCosine(), PatchDiscrimination()])
@pytest.mark.parametrize("share", [0, 1])
def test_nothing_or_everything_hidden_is_finite(loss, share):
    recon, target, hidden = case()
    recon.requires_grad_()
    hidden = torch.full_like(hidden, bool(share))
    value = loss(recon, target, hidden)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(recon.grad).all()
    assert loss(recon.bfloat16(), target, hidden).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        *((MaskedSmoothL1, {"beta": value}) for value in (0, "2", float("nan"))),
        *((PatchDiscrimination, {"tau": value}) for value in (0, "0.1")),
        *((kind, {"visible_weight": -1}) for kind in (MaskedL1, MaskedL2, MaskedFocalL1, MaskedCosine)),
        *((MaskedFocalL1, {key: -1}) for key in ("alpha", "gamma")),
        *((FourierLoss, given) for given in ({"alpha": -1}, {"leak": 2}, {"leak": "0.1"}, {"visible": ["mean"]})),
    ],
)
def test_an_argument_that_is_no_number_of_its_range_is_one_sentence(kind, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{kind.__name__}: {name}=.* (must be a number|is not one of)"):
        kind(**arguments)


def test_patches_are_not_told_apart_where_their_products_would_fill_the_memory():
    recon = torch.zeros(1, 2, 101, 100)
    with pytest.raises(ValueError, match=r"the target has 10100 cells an image .at most 10000.; choose a target"):
        PatchDiscrimination()(recon, recon, torch.ones(1, 1, 101, 100, dtype=torch.bool))

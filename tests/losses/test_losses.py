"""Every loss against a slow loop over its formula, with the whole spectrum where ours takes half."""

import math

import pytest
import torch

from a2mim.losses import FourierLoss, MaskedFocalL1, MaskedL1, full_spectrum_mean

SHAPES = [(2, 3, 8, 8), (1, 1, 5, 7), (3, 2, 6, 5), (2, 1, 4, 1)]


def batch(shape, seed=0, share=0.6):
    generator = torch.Generator().manual_seed(seed)
    recon, target = (torch.randn(shape, generator=generator) for _ in range(2))
    hidden = torch.rand(shape[0], 1, *shape[2:], generator=generator) < share
    return recon.requires_grad_(), target, hidden


def slow_spatial(recon, target, hidden, criterion, visible_weight=0.0):
    recon, total, weights = recon.detach(), 0.0, 0.0
    for b in range(recon.shape[0]):
        for y in range(recon.shape[2]):
            for x in range(recon.shape[3]):
                weight = 1.0 if hidden[b, 0, y, x] else visible_weight
                weights += weight
                for c in range(recon.shape[1]):
                    total += weight * criterion(abs(float(recon[b, c, y, x]) - float(target[b, c, y, x])))
    return total / (weights + 1e-5) / recon.shape[1]


def focal(d, alpha=0.2, gamma=1.0):
    return d * (2 / (1 + math.exp(-alpha * d)) - 1) ** gamma


def slow_fourier(recon, target, hidden, alpha, average, visible, leak):
    mask = hidden.double()
    mask = mask + (1 - mask) * leak
    recon, target = recon.detach().double(), target.double()
    fill = {
        "target": target,
        "prediction": recon,
        "mean": target.mean(dim=(2, 3), keepdim=True).expand_as(target),
        "mixed": 0.5 * recon + 0.5 * target,
    }[visible]
    composite = recon * mask + fill * (1 - mask)
    delta = torch.fft.fft2(composite, norm="ortho") - torch.fft.fft2(target, norm="ortho")
    if average == "batch":
        delta = delta.mean(dim=0, keepdim=True)
    total = count = 0.0
    for image in delta:
        magnitudes = [abs(complex(v)) for v in image.flatten()]
        focus = [math.log(1 + m**alpha) for m in magnitudes]
        for m, f in zip(magnitudes, focus, strict=True):
            total += (f / max(focus) if max(focus) else 0.0) * m**2
            count += 1
    return total / count


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("visible_weight", [0.0, 0.25])
def test_l1_equals_the_slow_loop(shape, visible_weight):
    recon, target, hidden = batch(shape)
    expected = slow_spatial(recon, target, hidden, lambda d: d, visible_weight)
    assert MaskedL1(visible_weight)(recon, target, hidden).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("alpha", "gamma"), [(0.2, 1.0), (1.5, 2.0), (0.7, 0.5)])
def test_focal_l1_equals_the_slow_loop(shape, alpha, gamma):
    recon, target, hidden = batch(shape)
    for visible_weight in (0.0, 0.25):
        expected = slow_spatial(recon, target, hidden, lambda d: focal(d, alpha, gamma), visible_weight)
        value = MaskedFocalL1(alpha, gamma, visible_weight)(recon, target, hidden)
        assert value.item() == pytest.approx(expected, rel=1e-5)


def test_focal_l1_is_a_tenth_of_the_square_for_small_differences():
    recon, target = torch.full((1, 1, 2, 2), 1e-3), torch.zeros(1, 1, 2, 2)
    value = MaskedFocalL1()(recon, target, torch.ones(1, 1, 2, 2, dtype=torch.bool))
    assert value.item() == pytest.approx(0.1 * 1e-6, rel=1e-3)


def test_the_gradient_of_focal_l1_flows_through_its_factor():
    recon = torch.tensor([[[[2.0]]]], requires_grad=True)
    MaskedFocalL1()(recon, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.bool)).backward()
    h = 1e-6
    slope = (focal(2.0 + h) - focal(2.0 - h)) / (2 * h)
    assert recon.grad.item() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("loss", [MaskedL1(), MaskedFocalL1()])
def test_visible_pixels_get_no_gradient(loss):
    recon, target, hidden = batch((2, 3, 8, 8))
    loss(recon, target, hidden).backward()
    assert recon.grad[~hidden.expand_as(recon)].abs().max() == 0
    assert recon.grad[hidden.expand_as(recon)].abs().min() > 0


def test_the_spatial_loss_is_normalised_over_the_whole_batch_not_per_image():
    recon, target = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    hidden = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    hidden[0], hidden[1, 0, 0, 0] = True, True
    recon[1, 0, 0, 0] = 5.0  # five hidden pixels, one of them off by 5: 1 over the batch, 2.5 per image
    assert MaskedL1()(recon, target, hidden).item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("average", ["image", "batch"])
@pytest.mark.parametrize("visible", ["target", "prediction", "mean", "mixed"])
@pytest.mark.parametrize(("alpha", "leak"), [(1.0, 0.0), (1.0, 1e-3), (0.5, 0.3), (0.0, 0.0)])
def test_fourier_equals_the_full_spectrum_in_a_slow_loop(shape, average, visible, alpha, leak):
    recon, target, hidden = batch(shape)
    expected = slow_fourier(recon, target, hidden, alpha, average, visible, leak)
    value = FourierLoss(alpha, average, visible, leak)(recon, target, hidden)
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("criterion", ["l1", "focal_l1"])
def test_the_unweighted_variant_is_the_mean_criterion_of_the_spectral_distance(criterion):
    recon, target, hidden = batch((2, 3, 6, 5))
    composite = torch.where(hidden, recon, 0.5 * recon + 0.5 * target).detach()
    delta = (torch.fft.fft2(composite, norm="ortho") - torch.fft.fft2(target, norm="ortho")).abs().flatten().tolist()
    expected = sum(d if criterion == "l1" else focal(d) for d in delta) / len(delta)
    value = FourierLoss(criterion=criterion)(recon, target, hidden)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_opposite_errors_cancel_in_the_batch_average_and_not_per_image():
    target = torch.randn(2, 1, 8, 8)
    error = torch.randn(1, 1, 8, 8)
    recon = target + torch.cat([error, -error])
    hidden = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    assert FourierLoss(average="batch")(recon, target, hidden).item() == pytest.approx(0, abs=1e-9)
    assert FourierLoss(average="image")(recon, target, hidden).item() > 0.01


def test_alpha_0_is_plain_l2_by_parseval():
    recon, target, hidden = batch((2, 3, 8, 8), share=2.0)
    expected = (recon - target).square().mean().item()
    assert FourierLoss(alpha=0.0)(recon, target, hidden).item() == pytest.approx(expected, rel=1e-5)


def test_the_focal_weight_carries_no_gradient():
    recon, target, hidden = batch((1, 1, 4, 4), share=2.0)
    FourierLoss()(recon, target, hidden).backward()
    frozen = recon.detach().clone().requires_grad_()
    delta = torch.fft.fft2(frozen - target, norm="ortho")
    power = delta.real**2 + delta.imag**2
    weight = torch.log1p(power.sqrt()).detach()
    ((weight / weight.max()) * power).mean().backward()
    assert torch.allclose(recon.grad, frozen.grad, atol=1e-6)


@pytest.mark.parametrize("visible", ["target", "prediction", "mean", "mixed"])
def test_visible_pixels_get_gradient_only_through_the_leak(visible):
    for leak, reached in ((0.0, False), (0.1, True)):
        recon, target, hidden = batch((2, 1, 6, 6))
        FourierLoss(visible=visible, leak=leak)(recon, target, hidden).backward()
        assert (recon.grad[~hidden].abs().max() > 0) == reached


@pytest.mark.parametrize("loss", [MaskedL1(), MaskedFocalL1(), MaskedFocalL1(gamma=0.5), FourierLoss()])
@pytest.mark.parametrize("hide", ["all", "none"])
@pytest.mark.parametrize("equal", [True, False])
def test_value_and_gradient_are_finite_for_constant_images_and_extreme_masks(loss, hide, equal):
    target = torch.full((1, 3, 4, 4), 2.0)
    recon = torch.full((1, 3, 4, 4), 2.0 if equal else -1.0, requires_grad=True)
    hidden = torch.full((1, 1, 4, 4), hide == "all")
    value = loss(recon, target, hidden)
    value.backward()
    assert math.isfinite(value.item())
    assert torch.isfinite(recon.grad).all()
    assert value.item() == 0 or (hide == "all" and not equal) or isinstance(loss, FourierLoss)


@pytest.mark.parametrize("loss", [MaskedL1(), MaskedFocalL1(), FourierLoss()])
def test_losses_compute_in_float32_under_autocast(loss):
    recon, target, hidden = batch((2, 3, 16, 16))
    plain = loss(recon, target, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(recon, target, hidden)
        half = loss(recon.bfloat16(), target, hidden)
    assert inside.dtype == half.dtype == torch.float32
    assert torch.equal(plain, inside)
    assert half.item() == pytest.approx(plain.item(), rel=0.02)


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_the_mean_over_half_a_spectrum_is_the_mean_over_the_whole(width):
    image = torch.randn(2, 3, 6, width, dtype=torch.float64)
    whole = torch.fft.fft2(image).abs().mean()
    assert full_spectrum_mean(torch.fft.rfft2(image).abs(), width).item() == pytest.approx(whole.item())


def test_a_misspelt_choice_is_refused_with_the_allowed_ones():
    with pytest.raises(ValueError, match="average='images' is not one of 'image', 'batch'"):
        FourierLoss(average="images")
    with pytest.raises(ValueError, match="same shape"):
        MaskedL1()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 4, 4, dtype=torch.bool))

"""A²MIM's distance between the spectra of a reconstruction and of the truth."""

from collections.abc import Callable

import torch
from torch import Tensor

from a2mim.losses.masked import FloatLoss, Focal, absolute
from a2mim.masking import mean_colour
from a2mim.registry import MODELS, check_number

CRITERIA: dict[str, Callable[[Tensor], Tensor]] = {"l1": absolute, "focal_l1": Focal(0.2, 1.0)}
# what stands at visible pixels, as its difference from the target; `error` is recon - target, without gradient
VISIBLE = {
    "target": lambda error, target: torch.zeros_like(error),
    "prediction": lambda error, target: error,
    "mean": lambda error, target: mean_colour(target) - target,
    "mixed": lambda error, target: 0.5 * error,
}


@MODELS.register_module()
class FourierLoss(FloatLoss):
    """Squared spectral distance, weighted towards the frequencies reconstructed worst.

    The spectrum is of a composite: the reconstruction at hidden pixels, and at visible ones `visible` with a share
    `leak` of the reconstruction. The transform is over the whole image, orthonormal; the input is real, so half of the
    spectrum stands for the whole, to the last digit of the mean.

    Args:
        alpha: exponent of the weight log(1 + |F(y) - F(x)|^alpha); 0 is plain L2. Dimensionless, >= 0.
        average: "image" compares each image's spectrum (the paper); "batch" averages the complex spectra first (the
            reference code), so that opposite errors cancel and the term shrinks about as 1/B. "image" is not the
            reference's ave_spectrum=False, which divides the weights by their maximum over the batch; here no image
            changes another one's term.
        visible: what stands at visible pixels: "target", "prediction" (no gradient), "mean" (the target's mean colour)
            or "mixed" (half prediction without gradient, half target).
        leak: share of the reconstruction, with gradient, in the visible pixels; 0..1.
        criterion: None for the weighted squares; "l1" or "focal_l1" for that criterion applied to |F(y) - F(x)|
            without a weight (the published ResNet-101 recipe).

    Source: A²MIM, https://arxiv.org/abs/2205.13943; the weighting from https://arxiv.org/abs/2012.12821.
    """

    name = "fourier"

    def __init__(
        self,
        alpha: float = 1.0,
        average: str = "image",
        visible: str = "mixed",
        leak: float = 0.0,
        criterion: str | None = None,
    ):
        super().__init__()
        for key, value, allowed in (
            ("average", average, ("image", "batch")),
            ("visible", visible, tuple(VISIBLE)),
            ("criterion", criterion, (None, *CRITERIA)),
        ):
            if value not in allowed:
                raise ValueError(f"FourierLoss: {key}={value!r} is not one of {', '.join(map(repr, allowed))}")
        check_number("FourierLoss", alpha=alpha)
        check_number("FourierLoss", most=1, leak=leak)
        self.alpha, self.average, self.visible, self.leak, self.criterion = alpha, average, visible, leak, criterion

    def distance(self, recon: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        error = recon - target
        visible = VISIBLE[self.visible](error.detach(), target)
        if self.leak:
            visible = torch.lerp(visible, error, self.leak)
        error = torch.where(hidden, error, visible)  # of the composite: F(y) - F(x) = F(y - x), one transform, not two
        if self.average == "batch":
            error = error.mean(dim=0, keepdim=True)
        if self.criterion:
            spectrum = torch.fft.rfft2(error, norm="ortho")  # (B, C, H, W // 2 + 1) complex
            return full_spectrum_mean(CRITERIA[self.criterion](spectrum.abs()), error.shape[-1])
        return self.weighted_squares(error)

    def weighted_squares(self, error: Tensor) -> Tensor:
        """mean(w |F(error)|^2) of (B, C, H, W), without a transform in the backward pass.

        The weight w has no gradient, so this is a quadratic form, the scalar product of the error and A error with
        A = F^H w F. Its gradient is 2 A error.
        """
        with torch.no_grad():
            spectrum = torch.fft.rfft2(error, norm="ortho")
            torch.view_as_real(spectrum).mul_(self.focus(spectrum.abs())[..., None])
            filtered = torch.fft.irfft2(spectrum, s=error.shape[-2:], norm="ortho")
        value = torch.linalg.vecdot(filtered.flatten(1), error.flatten(1)).mean() / error[0].numel()
        return 2 * value - value.detach()

    def focus(self, magnitude: Tensor) -> Tensor:
        """(B, C, H, W // 2 + 1) spectral distance -> weight in [0, 1], 1 at the worst frequency of each spectrum."""
        weight = (magnitude if self.alpha == 1 else magnitude**self.alpha).log1p_()
        return weight.div_(weight.amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny))


def full_spectrum_mean(half: Tensor, width: int) -> Tensor:
    """Mean over a real image's whole spectrum from its half (..., H, width // 2 + 1): inner columns count twice."""
    inner = half[..., 1 : (width + 1) // 2]
    return (half.sum() + inner.sum()) / (half[..., 0].numel() * width)

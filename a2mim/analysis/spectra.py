"""Which frequencies the maps of a network hold, block by block, and how much its features vary over places.

For each block, the mean over images and channels of log(|FFT2| + 1e-6) of its map, with frequency 0 in the centre. The
curve is the half of the main diagonal from the centre outwards, minus its value at the centre: how much weaker high
frequencies are than the mean. A convolution lowers them less than attention does.

Sources: N. Park and S. Kim, How Do Vision Transformers Work?, ICLR 2022; used in A²MIM, https://arxiv.org/abs/2205.13943.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_SMALLEST = 1e-6  # added to amplitudes before the logarithm


@dataclass(frozen=True)
class DepthSpectrum:
    """What one block's map looks like, over many images.

    Args:
        depth: of the block, from 0 (first) to 1 (last).
        frequency: from 0 to 1 (the highest that the map can hold), along the diagonal.
        amplitude: log amplitude relative to frequency 0, natural logarithm.
        variance: over the places of a map, mean over images and channels.
    """

    depth: float
    frequency: tuple[float, ...]
    amplitude: tuple[float, ...]
    variance: float


def maps_by_depth(model: Any, images: Tensor) -> list[Tensor]:
    """(B, D, h, w) maps of every block or stage that timm can return, first to last.

    Raises:
        ValueError: the model gives no maps of its blocks.
    """
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"{type(model).__name__} does not let its blocks be looked into: it has no spectrum by depth")
    try:
        return list(model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True))
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(f"the blocks of {type(model).__name__} give no maps ({str(error)[:100]})") from None


@torch.no_grad()
def spectra(model: nn.Module, batches: Iterable[Tensor]) -> list[DepthSpectrum]:
    """The spectrum of each block.

    Args:
        model: in evaluation mode.
        batches: normalised images (B, C, H, W), on the model's device.

    Raises:
        ValueError: no batch, or a model without maps of its blocks.
    """
    amplitudes: list[Tensor] = []
    variances: list[Tensor] = []
    seen = 0
    for images in batches:
        for i, features in enumerate(maps_by_depth(model, images)):
            amplitude, variance = _of_map(features)
            if i == len(amplitudes):
                amplitudes.append(torch.zeros_like(amplitude))
                variances.append(torch.zeros_like(variance))
            amplitudes[i] += amplitude
            variances[i] += variance
        seen += len(images)
    if not seen:
        raise ValueError("no image was given to take spectra of")
    last = max(1, len(amplitudes) - 1)
    return [
        DepthSpectrum(i / last, *_diagonal((amplitude / seen).cpu()), float(variance / seen))
        for i, (amplitude, variance) in enumerate(zip(amplitudes, variances, strict=True))
    ]


def _of_map(features: Tensor) -> tuple[Tensor, Tensor]:
    """(B, D, h, w) -> sums over images: (h, w) log amplitudes, mean over channels; () variance over places."""
    features = features.double()
    spectrum = torch.fft.fftshift(torch.fft.fft2(features), dim=(-2, -1))
    logarithm = torch.log(spectrum.abs() + _SMALLEST).mean(dim=1).sum(dim=0)
    return logarithm, features.var(dim=(-2, -1), unbiased=False).mean(dim=1).sum()


def _diagonal(amplitude: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(frequencies, amplitudes minus that of frequency 0) from the centre to the corner; the map may be oblong."""
    centre = [side // 2 for side in amplitude.shape]
    reach = [side - 1 - middle for side, middle in zip(amplitude.shape, centre, strict=True)]
    steps = min(reach) + 1
    shares = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.zeros(1, dtype=torch.float64)
    rows, columns = ((middle + shares * most).round().long() for middle, most in zip(centre, reach, strict=True))
    values = amplitude[rows, columns]
    return tuple(shares.tolist()), tuple((values - values[0]).tolist())

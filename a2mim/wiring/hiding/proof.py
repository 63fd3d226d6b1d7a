"""Hidden pixels change nothing, proven on the network itself."""

from typing import Any

import torch
from torch import Tensor, nn

from a2mim.wiring.hiding.sparse import refuse_unfit
from a2mim.wiring.sites import feature_modules


def hiding_faults(encoder: Any, mask_patch_size: int) -> None:
    """Raises ValueError where an encoder that drops or runs sparse lets hidden pixels through.

    Args:
        encoder: a `MaskedEncoder` on a device that holds numbers.
        mask_patch_size: side of a hidden square, pixels.
    """
    images, mask = trial(encoder, mask_patch_size)
    if encoder.hide == "sparse":
        names = [name for name, _ in feature_modules(encoder.model)]
        maps = list(dict.fromkeys([*names, *encoder.tapping]))
        refuse_unfit(encoder.model, encoder.name, images, mask, maps)
    leak = leak_of(encoder, images[:1], mask[:1])
    if leak:
        raise ValueError(
            f"{encoder.name} cannot hide by {encoder.hide!r}: hidden pixels change its features by {leak:.2g}; "
            "hide='token' works with every network"
        )


def trial(encoder: Any, mask_patch_size: int) -> tuple[Tensor, Tensor]:
    """Two images of noise (2, C, H, W) and a mask of the encoder's cells that hides about half of each."""
    height, width = encoder.img_size
    if height % mask_patch_size or width % mask_patch_size:
        raise ValueError(
            f"mask_patch_size={mask_patch_size} does not divide the image of {height}x{width} pixels; hide="
            f"{encoder.hide!r} needs whole cells"
        )
    generator = torch.Generator("cpu").manual_seed(0)
    images = torch.randn(2, encoder.in_chans, height, width, generator=generator, device="cpu")
    rows, cols = height // mask_patch_size, width // mask_patch_size
    order = torch.rand(2, rows * cols, generator=generator, device="cpu").argsort(1)
    mask = (order < max(1, rows * cols // 2)).view(2, rows, cols)
    device = next(encoder.model.parameters()).device
    return images.to(device), mask.to(device)


@torch.no_grad()
def leak_of(encoder: nn.Module, images: Tensor, mask: Tensor) -> float:
    """The largest change of the maps when hidden pixels change and nothing else; exactly 0 where none gets through."""
    training = encoder.training
    hidden = mask.repeat_interleave(images.shape[2] // mask.shape[1], 1)
    hidden = hidden.repeat_interleave(images.shape[3] // mask.shape[2], 2)[:, None]
    other = torch.where(hidden, 3 - 2 * images, images)
    encoder.eval()
    try:
        pairs = zip(encoder(images, mask), encoder(other, mask), strict=True)
        return max(float((one - two).abs().max()) for one, two in pairs)
    finally:
        encoder.train(training)

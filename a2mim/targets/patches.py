"""Targets that are pixels, as they are or standardised."""

from einops import rearrange
from torch import Tensor

from a2mim.registry import MODELS, check_whole

ONE_NUMBER = "NormalizedPatches: a patch {} and patch_size=1 is one number, which has no contrast; give 2 or more"


@MODELS.register_module()
class Pixels:
    """The unfilled, mean/std-normalised crop itself: (B, C, H, W) -> the same. Source: A²MIM and SimMIM."""

    channels, stride = 3, 1

    def attach(self, encoder, mean, std) -> None:
        """Takes the number of channels."""
        self.channels = len(mean)

    def __call__(self, images: Tensor) -> Tensor:
        return images


@MODELS.register_module()
class NormalizedPatches:
    """Pixels standardised within each square patch: local contrast without brightness.

    Args:
        patch_size: side of a patch, pixels; must divide the image.
        channels: "each" standardises every channel by itself, with the biased variance; "together" all channels of a
            patch as one, with the unbiased variance, as MAE does.

    Raises:
        ValueError: a patch of one number, which is all mean and no contrast; or one that does not divide the image.

    Source: "together": MAE, https://arxiv.org/abs/2111.06377, (x - mean) / sqrt(variance + 1e-6).
    """

    stride = 1

    def __init__(self, patch_size: int = 16, channels: str = "each"):
        if channels not in ("each", "together"):
            raise ValueError(f"NormalizedPatches: channels={channels!r} is neither 'each' nor 'together'")
        check_whole("NormalizedPatches", patch_size=patch_size)
        if patch_size == 1 and channels == "each":
            raise ValueError(ONE_NUMBER.format("with channels='each'"))
        self.patch_size, self.together, self.channels = patch_size, channels == "together", 3

    def attach(self, encoder, mean, std) -> None:
        """Takes the number of channels."""
        self._check_channels(len(mean))
        self.channels = len(mean)

    def _check_channels(self, channels: int) -> None:
        if self.patch_size == channels == 1:
            raise ValueError(ONE_NUMBER.format("of images of one channel"))

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        self._check_channels(images.shape[1])
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"NormalizedPatches: patch_size={self.patch_size} does not divide {height}x{width} pixels")
        patches = rearrange(images, "b c (h p) (w q) -> b c h w p q", p=self.patch_size, q=self.patch_size)
        if self.together:
            variance, mean = patches.var(dim=(1, -2, -1), keepdim=True), patches.mean(dim=(1, -2, -1), keepdim=True)
            scaled = (patches - mean) / (variance + 1e-6).sqrt()
        else:
            centred = patches - patches.mean(dim=(-2, -1), keepdim=True)
            scaled = centred / (centred.square().mean(dim=(-2, -1), keepdim=True) + 1e-6).sqrt()
        return rearrange(scaled, "b c h w p q -> b c (h p) (w q)")

"""What the hidden area must be reconstructed to."""

from einops import rearrange
from torch import Tensor

from a2mim.registry import MODELS


@MODELS.register_module()
class Pixels:
    """The unfilled, mean/std-normalised crop itself: (B, C, H, W) -> the same. Source: A²MIM and SimMIM."""

    def __call__(self, images: Tensor) -> Tensor:
        return images


@MODELS.register_module()
class NormalizedPatches:
    """Pixels standardised within each square patch and channel: local contrast without brightness or colour.

    Args:
        patch_size: side of a patch, pixels; must divide the image.

    Source: after MAE, https://arxiv.org/abs/2111.06377, which standardises all channels of a patch together.
    """

    def __init__(self, patch_size: int = 16):
        self.patch_size = patch_size

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"NormalizedPatches: patch_size={self.patch_size} does not divide {height}x{width} pixels")
        patches = rearrange(images, "b c (h p) (w q) -> b c h w p q", p=self.patch_size, q=self.patch_size)
        centred = patches - patches.mean(dim=(-2, -1), keepdim=True)
        scaled = centred / (centred.square().mean(dim=(-2, -1), keepdim=True) + 1e-6).sqrt()
        return rearrange(scaled, "b c h w p q -> b c (h p) (w q)")


TARGETS = {"pixels": Pixels}

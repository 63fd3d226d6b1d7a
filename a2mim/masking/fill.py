"""What the encoder sees in hidden pixels.

A fill is called as fill(images, hidden) with images (B, C, H, W) normalised float and hidden (B, 1, H, W) bool. It may
be an nn.Module with parameters of its own (`LearnedFill`).
"""

from collections.abc import Callable

import torch
from einops import reduce
from torch import Tensor, nn

from a2mim.registry import MODELS, check_whole, find_part, lookup, takes


def fill_mean(images: Tensor, hidden: Tensor) -> Tensor:
    """Hidden pixels take the image's own mean colour: per image, per channel, over the whole crop, hidden pixels
    included.

    images: (B, C, H, W) normalised float; hidden: (B, 1, H, W) bool.
    """
    return torch.where(hidden, mean_colour(images), images)


def fill_none(images: Tensor, hidden: Tensor) -> Tensor:
    """Leaves the hidden pixels as they are: for methods whose token replaces what the network made of them."""
    return images


def mean_colour(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 1, 1), averaged in float32."""
    return reduce(images.float(), "b c h w -> b c 1 1", "mean").to(images.dtype)


def median_colour(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 1, 1): the median of each channel's pixels; of an even number the lower middle one."""
    return images.flatten(2).median(dim=2).values[..., None, None]


@MODELS.register_module()
class LearnedFill(nn.Module):
    """Hidden pixels take one learned colour.

    Args:
        in_chans: channels of the images; `MIM` fills in its own.

    Raises:
        ValueError: the images have another number of channels.

    Source: FastMIM, https://arxiv.org/abs/2212.06593; the colour starts from N(0, 0.02).
    """

    def __init__(self, in_chans: int = 3):
        check_whole("LearnedFill", in_chans=in_chans)
        super().__init__()
        self.colour = nn.Parameter(torch.randn(in_chans) * 0.02)

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """images: (B, C, H, W); hidden: (B, 1, H, W) bool. Returns (B, C, H, W)."""
        if images.shape[1] != len(self.colour):
            raise ValueError(
                f"LearnedFill holds a colour of {len(self.colour)} channels and the images have {images.shape[1]};"
                f" give it in_chans={images.shape[1]}, or leave in_chans out of its config"
            )
        return torch.where(hidden, self.colour.to(images.dtype).view(1, -1, 1, 1), images)


FILLS = {"mean": fill_mean, "none": fill_none}


def make_fill(fill: str | dict | Callable, in_chans: int) -> Callable:
    """A name of `FILLS`, a config or a fill -> a fill.

    Args:
        in_chans: channels of the images. A config whose class takes `in_chans` need not say it.

    Raises:
        ValueError: a name or an argument is not known.
    """
    if isinstance(fill, str):
        return lookup(fill, FILLS, "fill")
    if not isinstance(fill, dict):
        return fill
    part = find_part(fill.get("type"), MODELS)
    derived = {"in_chans": in_chans} if part is not None and takes(part, "in_chans") else {}
    return MODELS.build({**derived, **fill})

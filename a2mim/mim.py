"""MIM: mask, fill, encode, decode, compare. A method is a choice of parts, not a class of its own."""

import math

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from a2mim.decoders import DECODERS
from a2mim.encoder import MaskedEncoder
from a2mim.masking import FILLS, expand_mask, mean_colour
from a2mim.names import nearest
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from a2mim.registry import MODELS
from a2mim.targets import TARGETS


@MODELS.register_module()
class MIM(BaseModel):
    """Masked image modelling with any encoder.

    Args:
        encoder: a `MaskedEncoder` or its config.
        masking: which cells are hidden: a callable like `BlockMask`, or its config.
        losses: losses, or their configs; a config may carry `weight` (default 1), and weight 0 leaves the loss out.
        decoder: "linear", or a config whose in_channels and stride are filled in, one decoder for each map of the
            encoder.
        target: "pixels", or a config of a target.
        fill: what stands in hidden pixels: "mean" or "none".
        mean, std: normalisation of uint8 images, per channel, in units of 0..1.

    Source: A²MIM, https://arxiv.org/abs/2205.13943.
    """

    def __init__(
        self,
        encoder,
        masking,
        losses,
        decoder="linear",
        target="pixels",
        fill: str = "mean",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ):
        super().__init__()
        self.masking = _part(masking)
        self.encoder: MaskedEncoder = _part(encoder)
        self.target = _named(target, TARGETS, "target")()
        self.fill = _lookup(fill, FILLS, "fill")
        self.losses, self.weights, self.loss_names = nn.ModuleList(), [], []
        for loss in losses:
            self._add_loss(loss)
        make = _named(decoder, DECODERS, "decoder")
        self.decoders = nn.ModuleList(
            make(in_channels=c, stride=math.ceil(s), out_channels=len(mean))
            for c, s in zip(self.encoder.channels, self.encoder.strides, strict=True)
        )
        if hasattr(self.encoder, "img_size"):  # a cell that does not fit is refused now, not at the first batch
            self.masking(1, *self.encoder.img_size, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def _add_loss(self, loss) -> None:
        weight = 1.0
        if isinstance(loss, dict):
            loss = dict(loss)
            weight = loss.pop("weight", 1.0)
            loss = MODELS.build(loss)
        if not isinstance(weight, int | float) or weight < 0:
            raise ValueError(f"weight={weight!r} of {type(loss).__name__} must be a number of at least 0")
        if weight:
            self.losses.append(loss)
            self.weights.append(weight)
            same = sum(other.name == loss.name for other in self.losses)
            self.loss_names.append(f"loss_{loss.name}" if same == 1 else f"loss_{loss.name}_{same}")

    def forward(self, images: Tensor, mode: str = "loss", mask: Tensor | None = None, generator=None) -> dict:
        """images: (B, C, H, W) uint8, or normalised float; mask: (B, rows, cols) bool, drawn from `generator` when
        None.

        mode "loss" returns {"loss_<name>": scalar}; "baseline" the same scalars for the answer "the image's mean colour
        everywhere", without running the encoder; "predict" returns {"target", "masked", "recon"} (B, C, H, W) and
        "hidden".
        """
        images = normalize(images, self.mean, self.std)
        height, width = images.shape[-2:]
        if mask is None:
            mask = self.masking(len(images), height, width, generator=generator, device=images.device)
        hidden = expand_mask(mask, height, width)
        target = self.target(images)
        if mode == "baseline":
            return self.compare(mean_colour(target).expand_as(target), target, hidden)
        masked = self.fill(images, hidden)
        recon = self.decode(self.encoder(masked, mask), height, width)
        if mode == "predict":
            return {"target": target, "masked": masked, "recon": recon, "hidden": hidden}
        return self.compare(recon, target, hidden)

    def decode(self, features: list[Tensor], height: int, width: int) -> Tensor:
        """One (B, D, h, w) map a decoder -> (B, C, height, width), averaged over maps.

        Where the cells of a map do not divide the image (a stride that is no whole number), what is decoded is resized;
        else what overhangs is cropped, and pixels that no cell reaches (ViT at 72 px: 4 cells of 16) are answered by 0,
        the mean of the data.
        """
        recons = []
        for decoder, x, stride in zip(self.decoders, features, self.encoder.strides, strict=True):
            recon = decoder(x)
            if stride != int(stride):
                recon = F.interpolate(recon, (height, width), mode="bilinear", align_corners=False)
            elif recon.shape[-2:] != (height, width):
                recon = F.pad(recon, (0, width - recon.shape[-1], 0, height - recon.shape[-2]))  # below 0: a crop
            recons.append(recon)
        return torch.stack(recons).mean(dim=0) if len(recons) > 1 else recons[0]

    def compare(self, recon: Tensor, target: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """The weighted losses by name; their sum is what training minimises."""
        return {
            name: weight * loss(recon, target, hidden)
            for name, loss, weight in zip(self.loss_names, self.losses, self.weights, strict=True)
        }


def _part(part):
    return MODELS.build(part) if isinstance(part, dict) else part


def _lookup(name: str, table: dict, what: str):
    if name not in table:
        raise ValueError(f"{what}={name!r} is not known{nearest(name, table)}")
    return table[name]


def _named(part, table: dict, what: str):
    """A short name or a config -> a function of the remaining arguments."""
    if isinstance(part, str):
        return _lookup(part, table, what)
    return lambda **extra: MODELS.build({**part, **extra}) if isinstance(part, dict) else part

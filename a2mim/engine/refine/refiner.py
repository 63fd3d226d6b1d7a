"""The model that refinement trains: an encoder with a contrastive head on each of its last maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from a2mim.encoder import MaskedEncoder
from a2mim.engine.refine.heads import Head
from a2mim.pixels import normalize
from a2mim.wiring.order import first_parameters, last_maps

VIEWS = 2  # crops of an image


class Refiner(BaseModel):
    """Two views of an image, each predicted from a neighbour of the other, at several maps of one encoder.

    Args:
        encoder: whose maps are read, see `encoder_with_last_maps`; it sees whole images.
        heads: one for each map.
        frozen: share of the encoder's layers, from the first on, that are not trained.
        mean, std: normalisation of stored images, per channel, in units of 0..1.
        temperature: of the softmax over the images of a batch.

    Source: MAE-CT, https://arxiv.org/abs/2304.10520 (heads at the last layer), and MIM-Refiner,
        https://arxiv.org/abs/2402.10093 (heads on the last third of the layers, losses summed).
    """

    def __init__(
        self,
        encoder: MaskedEncoder,
        heads: Sequence[Head],
        frozen: float,
        mean: Sequence[float],
        std: Sequence[float],
        temperature: float = 0.15,
    ):
        super().__init__()
        self.encoder, self.heads, self.temperature = encoder, nn.ModuleList(heads), temperature
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.kept = first_parameters(encoder.model, noise_of(encoder), frozen)
        for name in self.kept:
            encoder.model.get_parameter(name).requires_grad_(False)

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        k: int,
        heads_only: bool = False,
        generator: torch.Generator | None = None,
        mode: str = "loss",
    ) -> dict[str, Tensor]:
        """{"loss_<number of the head>": scalar}.

        Args:
            images: (N, 2, C, H, W) as stored, two views of each image.
            ids: (N,) int64, the samples.
            k: nearest neighbours to choose from.
            heads_only: the encoder gets no gradient.
            generator: of the choice of neighbours.
        """
        views = normalize(images.transpose(0, 1).flatten(0, 1), self.mean, self.std)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not heads_only):
            pooled = [features.float().mean(dim=(2, 3)) for features in self.encoder(views)]
        losses = {
            f"loss_{number}": head(part.unflatten(0, (VIEWS, -1)), ids, k, self.temperature, generator)
            for number, (head, part) in enumerate(zip(self.heads, pooled, strict=True))
        }
        if heads_only and torch.distributed.is_initialized():  # DistributedDataParallel waits for every gradient
            idle = torch.stack([p.sum() for p in self.encoder.parameters() if p.requires_grad] or [views.new_zeros(())])
            losses["loss_0"] = losses["loss_0"] + 0.0 * idle.sum()
        return losses

    def after_step(self, step: int, steps: int) -> None:
        """Moves the heads' slow projectors. step: 1..steps."""
        for head in self.heads:
            assert isinstance(head, Head)
            head.follow()


def encoder_with_last_maps(name: str, maps: Sequence[str] | str, **arguments) -> MaskedEncoder:
    """A `MaskedEncoder` without a token that reads the named maps.

    Args:
        name: of timm, or the dotted path of a network of the user's own.
        maps: modules; "last_third": the maps that the network hands on within the last third of its layers, or its
            final map where it names none; "last": the final map.
        arguments: of `MaskedEncoder`.
    """
    if maps != "last_third" and not isinstance(maps, str):
        return MaskedEncoder(name, token="none", maps=maps, **arguments)
    plain = MaskedEncoder(name, token="none", **arguments)
    if maps == "last":
        return plain
    found = last_maps(plain.model, noise_of(plain), share=1 / 3)
    if not found:
        return plain
    try:
        return MaskedEncoder(name, token="none", maps=found, **arguments)
    except ValueError:  # a module that timm names hands on no map that can be read
        return plain


def map_names(encoder: MaskedEncoder) -> list[str]:
    """The modules whose maps an encoder reads; none where it reads what `forward_features` returns."""
    return [place.name for place in encoder.study.finals if place.name]


def noise_of(encoder: MaskedEncoder) -> Tensor:
    """Two images of noise of the encoder's size, (2, C, H, W)."""
    generator = torch.Generator("cpu").manual_seed(0)
    size = 2, encoder.in_chans, *encoder.img_size
    return torch.randn(size, generator=generator, device="cpu").to(next(encoder.parameters()))

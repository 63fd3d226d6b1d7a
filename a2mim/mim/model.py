"""MIM: mask, fill, encode, decode, compare. A method is a choice of parts, not a class of its own."""

import inspect
import math
from collections.abc import Callable, Sequence

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from a2mim.decoders.each_map import EachMap, check_answer, tell
from a2mim.decoders.tokens import fit_grid
from a2mim.encoder import MaskedEncoder
from a2mim.masking import expand_mask, make_fill, mean_colour, median_colour
from a2mim.mim.contract import (
    OFFERED,
    as_loss,
    build_decoder,
    check_call,
    check_counts,
    check_encoder,
    check_parts,
    left_out,
)
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from a2mim.registry import MODELS, check_whole, lookup, takes
from a2mim.targets import TARGETS


@MODELS.register_module()
class MIM(BaseModel):
    """Masked image modelling with any encoder.

    Args:
        encoder: a `MaskedEncoder` or its config.
        masking: which cells are hidden: a part of `a2mim.masking`, or its config.
        losses: losses, or their configs; a config may carry `weight` (default 1), and weight 0 leaves the loss out.
        decoder: a name of `a2mim.decoders.DECODERS`, or a config; what follows from the encoder and the target
            (channels, strides) is filled in. A decoder of one map is made once for each map of the encoder.
        target: a name of `a2mim.targets.TARGETS`, a target or its config.
        fill: what stands in hidden pixels: "mean", "none", a function (images, hidden), or a config; the images'
            channels are filled in.
        mean, std: normalisation of uint8 images, per channel, in units of 0..1.

    Raises:
        ValueError: a part answers with another shape than its place needs; found with two images of noise.

    Source: A²MIM, https://arxiv.org/abs/2205.13943.

    Examples:
        >>> encoder = a2mim.MaskedEncoder("test_vit", img_size=64, mask_patch_size=16)
        >>> method = a2mim.MIM(encoder, a2mim.masking.BlockMask(16, 0.5), [a2mim.losses.MaskedL1()])
        >>> list(method(torch.rand(2, 3, 64, 64)))
        ['loss_l1']
    """

    def __init__(
        self,
        encoder: MaskedEncoder | dict,
        masking: Callable | dict,
        losses: Sequence,
        decoder: str | dict | nn.Module = "linear",
        target: str | dict | Callable = "pixels",
        fill: str | dict | Callable = "mean",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        self.masking = _part(masking)
        self.encoder: MaskedEncoder = _part(encoder)
        self.target = _named(target, TARGETS, "target")
        self.fill = make_fill(fill, len(mean))
        check_encoder(self.encoder)
        for what, part in (("mask", self.masking), ("target", self.target), ("fill", self.fill)):
            check_call(what, part)
        self.losses = nn.ModuleList()
        self.weights: list[float] = []
        self.loss_names: list[str] = []
        for loss in losses:
            self._add_loss(loss)
        if not self.weights:
            raise ValueError("losses must hold at least one loss with a weight above 0; give one, e.g. MaskedL1()")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.pixels = tuple(mean), tuple(std)
        self.attach_target()
        if isinstance(self.target, nn.Module):
            self.target.eval().requires_grad_(False)
        self.target_channels = getattr(self.target, "channels", len(self.pixels[0]))
        self.target_stride = getattr(self.target, "stride", 1)
        stated = {"channels": self.target_channels, "stride": self.target_stride}
        check_whole(f"the target {type(self.target).__name__}", **stated)
        self.decoders = build_decoder(decoder, self.encoder, self.target, self.target_channels, self.target_stride)
        self._mask_reads_images = takes(self.masking, "images")
        self._encoder_takes_cells = takes(self.encoder.forward, "hidden_cells")
        self._encoder_gives_prefixes = takes(self.encoder.forward, "with_prefixes")
        self._decoder_takes = [name for name in OFFERED["decoder"] if takes(self.decoders.forward, name)]
        if hasattr(self.encoder, "img_size"):  # parts that do not fit are refused now, not at the first batch
            check_parts(self)

    def _add_loss(self, loss) -> None:
        weight = 1.0
        if isinstance(loss, dict):
            loss = dict(loss)
            weight = loss.pop("weight", 1.0)
            loss = MODELS.build(loss)
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(f"weight={weight!r} of {type(loss).__name__} must be a number of at least 0")
        if weight:
            loss = as_loss(loss)
            self.losses.append(loss)
            self.weights.append(weight)
            same = sum(other.name == loss.name for other in self.losses)
            self.loss_names.append(f"loss_{loss.name}" if same == 1 else f"loss_{loss.name}_{same}")

    def attach_target(self) -> None:
        """Tells the target of the encoder. Call it again when weights were loaded into the encoder before training."""
        if hasattr(self.target, "attach"):
            self.target.attach(self.encoder, *self.pixels)

    def train(self, mode: bool = True) -> "MIM":
        """The target stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.target, nn.Module):
            self.target.eval()
        return self

    def forward(
        self,
        images: Tensor,
        mode: str = "loss",
        mask: Tensor | None = None,
        generator=None,
        hidden_cells: int | None = None,
    ) -> dict:
        """images: (B, C, H, W) uint8, or normalised float; (B, V, C, H, W) for V views of each image. mask: (B, rows,
        cols) bool, drawn from `generator` when None; (B, K, rows, cols) for K masks of each image. hidden_cells: how
        many cells of the given mask are True, see `draw`.

        mode "loss" returns `{"loss_<name>": scalar}`; "baseline" the same scalars for the answer "the target's mean
        over the image everywhere", without running the encoder; "predict" returns {"images", "masked"} (B, C, H, W),
        {"target", "recon"} (B, C_t, h, w) and "hidden" (B, 1, h, w) on the target's grid.
        """
        images, target, mask = self.prepare(images, mask, generator)
        height, width = images.shape[-2:]
        hidden = expand_mask(mask, *target.shape[-2:])
        if mode == "baseline":
            return self.compare(mean_colour(target).expand_as(target), target, hidden)
        masked = self.fill(images, expand_mask(mask, height, width))
        known = () if hidden_cells is None else (hidden_cells,)
        recon = self.decode(self.encode(masked, mask, *known), height, width, mask, *known)
        if mode == "predict":
            return {"images": images, "masked": masked, "target": target, "recon": recon, "hidden": hidden}
        return self.compare(recon, target, hidden)

    def prepare(self, images: Tensor, mask: Tensor | None, generator=None) -> tuple[Tensor, Tensor, Tensor]:
        """(normalised images (B, C, H, W), target (B, C_t, h, w), mask (B, rows, cols)), one row a view and a mask."""
        if images.ndim == 5:
            images = images.flatten(0, 1)
        images = normalize(images, self.mean, self.std)
        if mask is None:
            mask = self.draw_mask(images, generator)
        with torch.no_grad():
            target = self.target(images)
        if mask.ndim == 4:
            images, target = (x.repeat_interleave(mask.shape[1], dim=0) for x in (images, target))
            mask = mask.flatten(0, 1)
        return images, target, mask

    @torch.no_grad()
    def baselines(
        self, images: Tensor, mask: Tensor | None = None, generator=None, hidden_cells: int | None = None
    ) -> dict[str, Tensor]:
        """The summed losses of two answers that need no network: the target's mean over each image, and its median.

        The mean is a weak rival where most pixels have one value, as in line drawings. Arguments as in `forward`.
        """
        _, target, mask = self.prepare(images, mask, generator)
        hidden = expand_mask(mask, *target.shape[-2:])
        answers = {"mean": mean_colour(target), "median": median_colour(target)}
        return {
            name: torch.stack(list(self.compare(answer.expand_as(target), target, hidden).values())).sum()
            for name, answer in answers.items()
        }

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor | None, int | None]:
        """(the mask on the images' device, how many of its cells are hidden) for stored images (B, C, H, W) or (B, V,
        C, H, W). The number is None unless the mask is made on the CPU, see `mask_device`. (None, None) where the mask
        part looks at the images: then `forward` draws.

        Args:
            generator: on `mask_device` of the images' device.
        """
        if self._mask_needs_images():
            return None, None
        number = len(images) * (images.shape[1] if images.ndim == 5 else 1)
        mask = self.masking(number, *images.shape[-2:], generator=generator, device=generator.device)
        if generator.device.type != "cpu":
            return mask, None
        check_counts(self, mask)
        cells = int(mask.numpy().sum())
        if images.is_cuda:
            mask = mask.pin_memory()
        return mask.to(images.device, non_blocking=True), cells

    def mask_device(self, device: torch.device) -> torch.device:
        """Where masks are best made for a model on `device`: on the CPU where the host must know how many cells are
        hidden, or must look at what was drawn; it would wait for the device otherwise.
        """
        seen = left_out(self.encoder) or getattr(self.masking, "on_host", False)
        return torch.device("cpu") if seen and not self._mask_needs_images() else device

    def _mask_needs_images(self) -> bool:
        """Whether the masks follow from the images; our own parts take images and do without."""
        return self._mask_reads_images and getattr(self.masking, "reads_images", True)

    def draw_mask(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The mask part's answer for normalised images (B, C, H, W)."""
        more = {"images": images} if self._mask_reads_images else {}
        size = (len(images), *images.shape[-2:])
        return self.masking(*size, generator=generator, device=images.device, **more)

    def encode(
        self, images: Tensor, mask: Tensor, hidden_cells: int | None = None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Filled images (B, C, H, W), mask (B, rows, cols) -> (maps, class and register tokens (B, P, D) or None of
        each map).
        """
        more = {"hidden_cells": hidden_cells} if self._encoder_takes_cells else {}
        if self._encoder_gives_prefixes:
            return self.encoder(images, mask, with_prefixes=True, **more)
        maps = self.encoder(images, mask, **more)
        return maps, [None] * len(maps)

    def decode(
        self,
        features: list[Tensor] | tuple,
        height: int,
        width: int,
        mask: Tensor | None = None,
        hidden_cells: int | None = None,
    ) -> Tensor:
        """Maps (B, D, h, w), or what `encode` returns, -> (B, C_t, height / s_t, width / s_t).

        Where the decoder's cells do not divide the image, what overhangs is cropped and cells that no feature reaches
        are answered by 0; see `a2mim.decoders.tokens.fit_grid`.
        """
        maps, prefixes = features if isinstance(features, tuple) else (features, [None] * len(features))
        grid = height // self.target_stride, width // self.target_stride
        if mask is None:
            mask = torch.zeros(len(maps[0]), 1, 1, dtype=torch.bool, device=maps[0].device)
        if isinstance(self.decoders, EachMap):
            return self.decoders(maps, mask, grid=grid)
        offered = {"prefix": prefixes[-1], "prefixes": prefixes, "grid": grid, "hidden_cells": hidden_cells}
        recon = self.decoders(maps, mask, **{name: offered[name] for name in self._decoder_takes})
        ratios = [stride / self.target_stride for stride in self.encoder.strides]
        check_answer(self.decoders, recon, maps, ratios, self.target_channels, grid)
        return fit_grid(recon, grid, ratio=1)

    def compare(self, recon: Tensor, target: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """The weighted losses by name; their sum is what training minimises. A loss of several terms gives
        `loss_<name>_<term>`.
        """
        found: dict[str, Tensor] = {}
        for name, loss, weight in zip(self.loss_names, self.losses, self.weights, strict=True):
            value = loss(recon, target, hidden)
            terms = {f"{name}_{term}": v for term, v in value.items()} if isinstance(value, dict) else {name: value}
            found |= {term: weight * v for term, v in terms.items()}
        return found

    def after_step(self, step: int, steps: int) -> None:
        """Lets every part act after an optimiser step that has one to do. step: 1..steps."""
        tell((self.masking, self.fill, self.target, self.decoders, *self.losses), self.encoder, step, steps)


def _part(part):
    return MODELS.build(part) if isinstance(part, dict) else part


def _named(part, table: dict, what: str):
    """A short name, a config or a part -> the part."""
    if isinstance(part, str):
        found = lookup(part, table, what)
        return found() if inspect.isclass(found) else found
    return _part(part)

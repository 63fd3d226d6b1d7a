"""A one-page certificate of a network before training: where the mask token enters, and what was proven.

Invariant: every line is measured on this network, with random weights and random images.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from a2mim.encoder import MaskedEncoder
from a2mim.wiring.layout import Layout, leaves
from a2mim.wiring.model_type import TimmModel
from a2mim.wiring.networks import OwnNetwork, build_model
from a2mim.wiring.rates import Rates, measure_rates

SIZES = (64, 96, 128, 160, 192, 224, 256, 384, (224, 160))  # pixels, tried besides half, once and twice its own size


@dataclass
class MapLine:
    """A map that takes a token or is decoded; the fields are those of `a2mim.wiring.sites.FeatureMaps`."""

    name: str  # "" is what forward_features returns
    layout: str
    evidence: str
    grid: tuple[int, int]
    stride: float
    channels: int


@dataclass
class Certificate:
    """Plain values; `str` of it is the page."""

    name: str
    parameters: int
    img_size: tuple[int, int]
    in_chans: int
    sites: list[MapLine]
    depths: list[float]
    leaks: list[float]
    maps: list[MapLine]
    token_parameters: int
    frozen: list[str]
    frozen_parameters: int
    resized: list[str]
    checkpointing: bool
    rates: Rates  # stochastic depth and dropout in training
    difference: float  # of the features after strict loading into the plain network
    sizes: list = field(default_factory=list)
    refused: list = field(default_factory=list)

    @property
    def frozen_share(self) -> float:
        """Share of all parameters, in [0, 1]."""
        return self.frozen_parameters / max(1, self.parameters)

    def __str__(self) -> str:
        parts = sorted({".".join(key.split(".")[:2]) for key in self.frozen})
        frozen = f"{self.frozen_parameters:,} parameters ({self.frozen_share:.1%})"
        lines = [
            (
                "model",
                f"{self.name}, {self.parameters:,} parameters, {_size(self.img_size)} px, {self.in_chans} channels",
            ),
            *(
                ("site", f"{_line(s)}; after {depth:.0%} of the layers, {leak:.1%} passes by it")
                for s, depth, leak in zip(self.sites, self.depths, self.leaks, strict=False)
            ),
            *(("map", _line(m)) for m in self.maps),
            ("token", f"{self.token_parameters:,} parameters (twice as many in mode scaled)"),
            ("frozen", f"{frozen}: {', '.join(parts[:8])}{', …' if len(parts) > 8 else ''}" if parts else "nothing"),
            *(
                ("refilled", f"{name}: receives the image resized, and its hidden pixels are filled again")
                for name in self.resized
            ),
            ("drops", str(self.rates)),
            ("checkpointing", "yes, with the same token gradient" if self.checkpointing else "the network has none"),
            (
                "sizes",
                ", ".join(map(_size, self.sizes))
                + (f"; not {', '.join(map(_size, self.refused))}" if self.refused else ""),
            ),
            ("export", f"loads strictly into the plain network, features differ by {self.difference:.1g}"),
        ]
        return "\n".join(f"{word:14}{text}" for word, text in lines)


def certify(
    name: str,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    site: str | Sequence[str] = "auto",
    sizes: Sequence = SIZES,
    **arguments,
) -> Certificate:
    """The certificate of one network with random weights.

    Args:
        name, img_size, in_chans, site, arguments: see `MaskedEncoder`.
        sizes: image sizes to try on the meta device. If the network does not run there, only its own size is listed.

    Raises:
        ValueError: the network cannot be built, has no place for the token, or does not load its own weights.
    """
    encoder = MaskedEncoder(name, site=site, img_size=img_size, in_chans=in_chans, **arguments).eval()
    found = encoder.study
    images = torch.randn(2, in_chans, *encoder.img_size, generator=torch.Generator().manual_seed(5))
    height, width = encoder.img_size
    own, *others = (
        h if h == w else (h, w) for h, w in ((height, width), (height // 2, width // 2), (2 * height, 2 * width))
    )
    every_size = sorted(dict.fromkeys((own, *others, *sizes)), key=_area)
    tried = {size: takes(name, size, in_chans, arguments.get("model_args")) for size in every_size}
    if not tried[own]:  # the network accepts its own size, so the meta device says nothing about it
        tried = {own: True}
    return Certificate(
        name=encoder.name,
        parameters=sum(p.numel() for p in encoder.model.parameters()),
        img_size=encoder.img_size,
        in_chans=in_chans,
        sites=[line for place in found.sites for line in _lines(place)],
        depths=[place.depth for place in found.sites for _ in place.layouts],
        leaks=[place.leak for place in found.sites for _ in place.layouts],
        maps=[line for place in found.finals for line in _lines(place)],
        token_parameters=sum(p.numel() for p in encoder.tokens),
        frozen=list(encoder.frozen),
        frozen_parameters=sum(encoder.model.get_parameter(key).numel() for key in encoder.frozen),
        resized=list(found.resized),
        checkpointing=checkpoints_alike(encoder, images),
        rates=measure_rates(encoder.model),
        difference=reload_difference(encoder, images),
        sizes=[size for size, works in tried.items() if works],
        refused=[size for size, works in tried.items() if not works],
    )


def takes(name: str, size, in_chans: int = 3, model_args: dict | None = None) -> bool:
    """True if a network can be built for images of `size` and runs on them, on the meta device."""
    try:
        with torch.device("meta"), torch.no_grad():
            built = build_model(name, size, in_chans, model_args=model_args)
            built.model.eval().forward_features(torch.empty(1, in_chans, *built.img_size))
    except Exception:  # networks refuse with any error
        return False
    return True


def reload_difference(encoder: MaskedEncoder, images: Tensor) -> float:
    """The largest difference between the encoder's features and those of the plain network after strict loading of its
    weights, as a share of the largest feature.
    """
    plain = rebuild(encoder)
    plain.load_state_dict(encoder.model.state_dict(), strict=True)
    plain.eval()
    worst = 0.0
    with torch.no_grad():
        pairs = zip(leaves(encoder.model.forward_features(images)), leaves(plain.forward_features(images)), strict=True)
        for (_, ours), (_, theirs) in pairs:
            worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-20)))
    return worst


def rebuild(encoder: MaskedEncoder) -> TimmModel:
    """The plain network, built only from the encoder's `arguments()`."""
    told = encoder.arguments()
    size = tuple(told["img_size"]) if isinstance(encoder.model, OwnNetwork) else None
    return build_model(told["name"], size, told["in_chans"], model_args=told["model_args"]).model


def checkpoints_alike(encoder: MaskedEncoder, images: Tensor) -> bool:
    """True if the network has gradient checkpointing; the token then gets the same gradient with it.

    Raises:
        ValueError: the gradient differs with gradient checkpointing.
    """
    gradients, mask = [], torch.zeros(len(images), 2, 2, dtype=torch.bool)
    mask[:, 0] = True
    for checkpointing in (False, True):
        trial = copy.deepcopy(encoder).train()  # in evaluation mode some networks cache results (EfficientViT)
        if checkpointing:
            try:
                trial.model.set_grad_checkpointing(True)
            except (AttributeError, AssertionError, NotImplementedError, ValueError):
                return False
        with torch.random.fork_rng():
            torch.manual_seed(0)  # drops the same paths
            maps = trial(images.clone().requires_grad_(), mask)
        sum(m.square().mean() for m in maps).backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in trial.tokens]
        gradients.append(torch.cat([g.flatten() for g in found]))
    error = (gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max().clamp(min=1e-20)
    if not error < 1e-3:
        raise ValueError(f"{encoder.name}: gradient checkpointing changes the token's gradient by {error:.1g}.")
    return True


def _lines(place) -> list[MapLine]:
    rows = zip(place.layouts.values(), place.strides, place.channels, strict=True)
    return [_map_line(place.name, layout, max(strides), channels) for layout, strides, channels in rows]


def _map_line(name: str, layout: Layout, stride: float, channels: int) -> MapLine:
    return MapLine(name, layout.kind, layout.evidence, layout.grid, stride, channels)


def _line(line: MapLine) -> str:
    rows, cols = line.grid
    where = repr(line.name) if line.name else "forward_features"
    known = "guessed from the shape" if line.evidence == "shape" else f"measured by {line.evidence}"
    return f"{where}: {line.channels} channels, {rows} x {cols} cells of {line.stride:g} px, {line.layout} ({known})"


def _size(size) -> str:
    return str(size) if isinstance(size, int) else " x ".join(map(str, size)) if size[0] != size[1] else str(size[0])


def _area(size) -> int:
    return size * size if isinstance(size, int) else size[0] * size[1]

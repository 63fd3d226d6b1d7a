"""A frozen encoder from any source: its weights, its preprocessing, its hash, and a report of what was loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from a2mim.devices import choose_device
from a2mim.evaluation.cells import LAST, MapReader, noise
from a2mim.evaluation.features import frozen, refuse_below_one
from a2mim.evaluation.identity import hash_encoder
from a2mim.evaluation.taps import is_cells, tap
from a2mim.weights.loading import build_reported, read_source


def not_finite(model: nn.Module) -> str | None:
    """The name of the first weight or statistic that holds NaN or infinity."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None


class Encoder:
    """A frozen encoder, from any source.

    Args:
        source: what `load_encoder` takes.
        device: "cpu", "cuda", …; None takes a GPU where there is one.
        img_size: pixels, or (H, W); None is the encoder's own.
        allow_partial: take weights that are not all of the model's; the result then says which.
        seed: of the weights, where the source is only a name.
    """

    def __init__(self, source, device=None, img_size=None, allow_partial: bool = False, seed: int = 0):
        refuse_below_one(img_size=img_size)
        self.device, self.name = choose_device(device), str(source)
        found = read_source(source)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # a random encoder is the same one each time
            sizes = {} if img_size is None else {"img_size": img_size}
            self.model, self.pixels, report = build_reported(found, allow_partial, **sizes)
        self.loading, self.loaded = report.as_dict(), str(report)
        if report.partial:
            warnings.warn(f"only a part was loaded, the rest is random: {self.loaded}", stacklevel=2)
        if broken := not_finite(self.model):
            raise ValueError(
                f"the weights in {source} are not finite, first in {broken}: the encoder has diverged; take an earlier"
                " checkpoint"
            )
        self.model.to(self.device).eval()
        self.random, self.clean_statistics = found.tensors is None, found.calibrated
        self.img_size = self.pixels.img_size
        self.stats = {"mean": list(self.pixels.mean), "std": list(self.pixels.std)}
        described = {"name": found.name, **found.model_args, "img_size": list(self.img_size)}
        self.hash = hash_encoder(self.model, **described)
        self._readers: dict[str, MapReader] = {}

    @property
    def channels(self) -> int:
        return self.pixels.channels

    def normalized(self, images: Tensor) -> Tensor:
        """What a loader gives -> float on the device."""
        return self.pixels.normalize(images.to(self.device, non_blocking=True))

    def taps(self, parts: Iterable[str]):
        """(images as a loader gives them) -> {part: (B, D)}, frozen, in one forward pass."""
        parts = tuple(parts)
        run = tap(self.model, parts, {part: self.reader(part) for part in parts if is_cells(part)})

        def frozen_run(images: Tensor) -> dict[str, Tensor]:
            with frozen(self.model):
                return run(self.normalized(images))

        return frozen_run

    def pooled(self, part: str, images: Tensor) -> Tensor:
        """One part of normalised images, frozen."""
        with frozen(self.model):
            return tap(self.model, (part,))(images)[part]

    def reader(self, part: str) -> MapReader:
        """The reader of the map from which the part "cells" or "cells:NAME" is made."""
        if part not in self._readers:
            name = part.partition(":")[2] or LAST
            self._readers[part] = MapReader(self.model, noise(self.channels, self.img_size, self.device), name)
        return self._readers[part]

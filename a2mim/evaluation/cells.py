"""One feature map of any network as cells: where it lies in what the network returns is measured, not guessed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from a2mim.evaluation.features import frozen
from a2mim.wiring.layout import leaves
from a2mim.wiring.model_type import TimmModel
from a2mim.wiring.sites import study

LAST = "auto"  # the last map, through the final norm where the network has one


class MapReader:
    """Reads one map out of a forward pass that others make.

    Args:
        model: the network, in evaluation mode.
        images: (2, C, H, W) normalised, on the network's device: what is measured on them holds for this size.
        name: of the module whose output is read; "auto" is the last map. Of several maps (CrossViT) the finest is read.
        most_side: cells; a larger map is averaged down to so many along each side. None: never.

    Attributes:
        grid: (h, w) cells.
        channels: D of a cell.
        stride: pixels a cell.

    Raises:
        ValueError: the network has no such map, or does not take images of this size.

    Use as a context around the forward pass: a hook is in place only inside.
    """

    def __init__(self, model: nn.Module, images: Tensor, name: str = LAST, most_side: int | None = None):
        try:
            finals = study(model, images, "auto", math.inf, name).finals
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            height, width = images.shape[2:]
            raise ValueError(
                f"{type(model).__name__} does not take images of {height} x {width} px: {reason}."
            ) from None
        except StopIteration:  # no layout agrees with answers that are NaN
            raise ValueError("the features of noise are not finite: the encoder has diverged.") from None
        maps = [
            (max(stride), channels, found.module, path, layout)
            for found in finals
            for stride, channels, (path, layout) in zip(
                found.strides, found.channels, found.layouts.items(), strict=True
            )
        ]
        self.stride, self.channels, self.module, self.path, layout = min(maps, key=lambda found: found[0])
        self.layout, height, width = layout.to(images.device), *layout.grid
        most = max(height, width) if most_side is None else most_side
        self.whole = max(height, width) <= most
        self.grid: tuple[int, int] = (min(height, most), min(width, most))
        self.model = model
        self._tapped = None

    def __enter__(self) -> MapReader:
        module = self.model.get_submodule(self.module) if self.module else None
        self._hook = module.register_forward_hook(self._tap) if module is not None else None
        return self

    def __exit__(self, *error) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._tapped = None

    def _tap(self, module, inputs, output) -> None:
        self._tapped = output

    def read(self, final) -> Tensor:
        """Output of `forward_features` of the pass inside the context -> (B, D, h, w) float32."""
        found = self.layout.to_map(dict(leaves(self._tapped if self.module else final))[self.path]).float()
        return found if self.whole else adaptive_avg_pool2d(found, self.grid)

    @property
    def numbers(self) -> int:
        """Of all cells of an image."""
        return self.channels * math.prod(self.grid)


def noise(channels: int, img_size: tuple[int, int], device) -> Tensor:
    """(2, C, H, W): the images that a network is measured on."""
    return torch.randn(2, channels, *img_size, generator=torch.Generator().manual_seed(0)).to(device)


def map_of(model: TimmModel, reader: MapReader) -> Callable[[Tensor], Tensor]:
    """Normalised images (B, C, H, W) -> (B, D, h, w) float32, frozen."""

    def run(images: Tensor) -> Tensor:
        with frozen(model), reader:
            return reader.read(model.forward_features(images))

    return run


def flat_cells(maps: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h·w·D) float16, cell after cell; what exceeds float16 is clipped to its largest number."""
    most = torch.finfo(torch.float16).max
    return maps.flatten(2).transpose(1, 2).flatten(1).clamp(-most, most).half()

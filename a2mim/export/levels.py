"""Chooses four maps of any network for a pyramid with strides of 4, 8, 16 and 32 pixels, and resamples them.

Invariant: the choice follows from the network's own maps alone, and nothing here has a parameter. So the pyramid is as
trained as the encoder is.
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from a2mim.evaluation.features import frozen
from a2mim.wiring.layout import Layout, leaves
from a2mim.wiring.sites import MAX_LEAK, FeatureMaps, feature_modules, leak, study
from a2mim.wiring.tracing import Call, trace, trial_copy

STRIDES = (4, 8, 16, 32)  # pixels


@dataclass(frozen=True)
class Level:
    """One map of a pyramid.

    Attributes:
        stride: pixels per cell of the level.
        module: the module whose output holds the map that the level is made from.
        path: of this map in the output.
        layout: the positions of its cells.
        own_stride: pixels per cell of this map, before it is resampled.
        channels: D.
    """

    stride: int
    module: str
    path: tuple
    layout: Layout
    own_stride: float
    channels: int

    @property
    def name(self) -> str:
        return f"stride{self.stride}"

    @property
    def resampling(self) -> str:
        """What is done to the module's map, in words."""
        if self.own_stride == self.stride:
            return "none"
        return "max pooling" if self._factor else "bilinear"

    @property
    def _factor(self) -> int:
        """Cells that are pooled along each side, where the level is coarser by a whole factor; else 0."""
        factor = self.stride / self.own_stride
        return int(factor) if factor > 1 and factor == int(factor) else 0

    def resample(self, features: Tensor, height: int, width: int) -> Tensor:
        """(B, D, h, w), the module's map of images of height x width pixels, -> the level's map."""
        if self.resampling == "none":
            return features
        if self._factor:
            return F.max_pool2d(features, self._factor, ceil_mode=True)
        size = [-(-height // self.stride), -(-width // self.stride)]
        return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def choose_levels(model: nn.Module, images: Tensor) -> list[Level]:
    """Four levels, the finest first.

    A level takes the deepest map of its stride. Where the network has no such map, it takes one of the nearest stride.
    Levels that take maps of the same stride share its depths evenly: of an isotropic network with 12 blocks they take
    blocks 3, 6, 9 and 12, the coarsest level the last.

    Args:
        images: (2, C, H, W), on which the maps are measured; the layouts hold for this size.

    Raises:
        ValueError: the network has no map of the image, or does not take these images.
    """
    found = [
        (max(strides), maps.module, path, layout, channels)
        for maps in _measured(model, images)
        for (path, layout), strides, channels in zip(maps.layouts.items(), maps.strides, maps.channels, strict=True)
    ]
    own_strides = {stride for stride, *_ in found}
    nearest = {s: min(own_strides, key=lambda own: (abs(math.log2(own / s)), own)) for s in STRIDES}
    levels = []
    for own in sorted(own_strides):
        maps = [one for one in found if one[0] == own]
        sharing = [stride for stride in STRIDES if nearest[stride] == own]
        for i, stride in enumerate(sharing, 1):
            _, module, path, layout, channels = maps[math.ceil(len(maps) * i / len(sharing)) - 1]
            levels.append(Level(stride, module, path, layout, own, channels))
    return sorted(levels, key=lambda level: level.stride)


def _measured(model: nn.Module, images: Tensor) -> list[FeatureMaps]:
    """The maps that timm declares, in order of depth; where it declares none, those that a trace shows."""
    trial, traced_images = trial_copy(model), images.clone().requires_grad_()
    seen = trace(trial, traced_images)
    traced = {call.name: call for call in seen.calls}
    declared = [name for name in dict(feature_modules(model)) if name in traced]
    names = declared or _main_path(trial, seen.calls, seen.output, traced_images)
    if not names:
        raise ValueError("no module returns a map of the image")
    return study(model, images, "auto", math.inf, names).finals


def _main_path(trial: nn.Module, calls: list[Call], output, images: Tensor) -> list[str]:
    """Names of modules that all of the image passes through: of each grid the blocks of the longest chain of equal
    blocks, or the last map where there is no chain.
    """
    roots = [tensor.grad_fn for _, tensor in leaves(output)]
    grids: dict[tuple[int, int], list[Call]] = {}
    for call in calls:
        if leak(call, roots, images) <= MAX_LEAK:
            grid = next(iter(call.guesses.values()))[0].grid
            grids.setdefault(grid, []).append(call)
    chosen = []
    for same in grids.values():
        kinds = {call.name: (call.name.rpartition(".")[0], type(trial.get_submodule(call.name))) for call in same}
        chain, length = Counter(kinds.values()).most_common(1)[0]
        chosen += [call for call in same if kinds[call.name] == chain] if length > 1 else [same[-1]]
    return [call.name for call in sorted(chosen, key=lambda call: call.depth)]


def read_maps(model: nn.Module, levels: list[Level], images: Tensor) -> list[Tensor]:
    """Each level's map before it is resampled, (B, D, h, w), by plain hooks and the measured layouts."""
    seen, handles = {}, []
    for level in levels:

        def note(module, inputs, output, level=level):
            seen[level.name] = level.layout.to_map(dict(leaves(output))[level.path]).clone()

        handles.append(model.get_submodule(level.module).register_forward_hook(note))
    try:
        with frozen(model):
            model.forward_features(images)  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    return [seen[level.name] for level in levels]


def read_by_hand(model: nn.Module, levels: list[Level], images: Tensor) -> dict[str, Tensor]:
    """The pyramid of normalised images (B, C, H, W): {"stride4": map, …}."""
    maps = read_maps(model, levels, images)
    size = images.shape[2:]
    return {level.name: level.resample(features, *size) for level, features in zip(levels, maps, strict=True)}

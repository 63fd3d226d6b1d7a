"""The layers of layer decay as the authors of ConvNeXt and SparK count them; timm counts each block as a layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from torch import nn

from a2mim.wiring.model_type import TimmModel

RESNET_BLOCKS = {(4, 6): (2, 3), (4, 23): (2, 3), (8, 36): (4, 4), (24, 36): (4, 4), (30, 48): (5, 6)}


class WithClassifier:
    """A network without a classifier, as if it had one: its layers are then counted as in fine-tuning.

    Args:
        model: timm's, or of the user's own.
    """

    def __init__(self, model: TimmModel):
        self.model = model
        prefix = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
        self.name = f"{prefix if isinstance(prefix, str) else prefix[0]}.weight"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the network, and one for the classifier, which is not trained."""
        yield from self.model.named_parameters()
        yield self.name, nn.Parameter(torch.empty(1, 1), requires_grad=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def published_layers(model: TimmModel, classifier: str | None = None) -> dict[str, int] | None:
    """{name of a parameter: its layer}: 0 for the stem, the greatest number for the classifier.

    None for a network whose authors publish no list: other families, and ResNets of other depths.

    Args:
        classifier: the name of a parameter of a classifier that the model lacks, to be counted too.

    Source: https://github.com/facebookresearch/ConvNeXt, optim_factory.py; ConvNeXt-T with 6 layers and the ResNets:
        https://github.com/keyu-tian/SparK, downstream_imagenet/models/__init__.py.
    """
    names = [name for name, _ in model.named_parameters()] + ([classifier] if classifier else [])
    if isinstance(model, ConvNeXt):
        stage: Any = model.stages[2]
        layers = 12 if len(stage.blocks) > 9 else 6
        return {name: _convnext_layer(name, layers) for name in names}
    if isinstance(model, ResNet):
        second: Any = model.layer2
        third: Any = model.layer3
        if (depths := (len(second), len(third))) in RESNET_BLOCKS:
            return {name: _resnet_layer(name, depths) for name in names}
    return None


def _convnext_layer(name: str, layers: int) -> int:
    """Three blocks of the third stage form a layer, each other stage is one. Downsampling is in the first layer."""
    if name.startswith("stem."):
        return 0
    found = re.match(r"stages\.(\d)\.(?:downsample|blocks\.(\d+))\.", name)
    if found is None:
        return layers + 1  # the last norm and the classifier
    stage, block = int(found[1]), int(found[2] or 0)
    if stage == 3:
        return layers
    return stage + 1 + (block // 3 if stage == 2 else 0)


def _resnet_layer(name: str, depths: tuple[int, int]) -> int:
    """Two to six blocks of a middle stage form a layer. The first and the last stage are one layer each."""
    sizes = RESNET_BLOCKS[depths]
    counts = [-(-depth // size) for depth, size in zip(depths, sizes, strict=True)]
    last = 2 + sum(counts)
    if name.startswith("fc."):
        return last + 1
    found = re.match(r"layer(\d)\.(\d+)\.", name)
    if found is None:
        return 0
    stage, block = int(found[1]), int(found[2])
    return {1: 1, 2: 2 + block // sizes[0], 3: 2 + counts[0] + block // sizes[1], 4: last}[stage]

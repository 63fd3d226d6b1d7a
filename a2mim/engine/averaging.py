"""Averaged weights of a model whose state also holds what is no tensor."""

from __future__ import annotations

from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn


class AveragedTensors(ExponentialMovingAverage):
    """mmengine's moving average, of the tensors in the state dictionary alone.

    A target that holds a network keeps it in the state as one nested entry; it is not averaged, and the copy shares it.
    """

    def __init__(self, model: nn.Module, **arguments):
        super().__init__(model, **arguments)
        self.avg_parameters = {key: value for key, value in self.avg_parameters.items() if isinstance(value, Tensor)}

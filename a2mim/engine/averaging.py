"""Averaged weights of a model whose state also holds what is no tensor."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn


class AveragedTensors(ExponentialMovingAverage):
    """mmengine's moving average, of the tensors in the state dictionary alone.

    A target that holds a network keeps it in the state as one nested entry; it is not averaged, and the copy shares it.
    """

    avg_parameters: dict[str, Any]

    def __init__(self, model: nn.Module, **arguments):
        super().__init__(model, **arguments)
        self.avg_parameters = {key: value for key, value in self.avg_parameters.items() if isinstance(value, Tensor)}
        self.begun = False  # whether this process has updated once; `steps` lies on the device, where reading it waits

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Moves the averages towards the model's tensors, in one kernel for each type of number."""
        if not self.begun or self.interval != 1:
            super().update_parameters(model)
            self.begun = True
            return
        now = model.state_dict()
        kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for key, average in self.avg_parameters.items():
            if average.dtype.is_floating_point:
                averages, values = kinds.setdefault(average.dtype, ([], []))
                averages.append(average)
                values.append(now[key])
        for averages, values in kinds.values():
            torch._foreach_lerp_(averages, values, self.momentum)
        self.steps += 1

"""Averaged weights of a model whose state also holds what is no tensor."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from a2mim.processes.fsdp import own_part


class AveragedTensors(ExponentialMovingAverage):
    """mmengine's moving average, of the tensors in the state dictionary alone.

    A target that holds a network keeps it in the state as one nested entry; it is not averaged, and the copy shares it.
    """

    avg_parameters: dict[str, Any]

    def __init__(self, model: nn.Module, **arguments):
        super().__init__(model, **arguments)
        self.read_tensors()
        self.begun = False  # whether this process has updated once; `steps` lies on the device, where reading it waits
        self.bad: Tensor | None = None  # 0-d bool on the device: the step was not finite, so the averages stay

    def read_tensors(self) -> None:
        """Takes up the tensors that the module has now; call it again where they were replaced."""
        self.avg_parameters = {
            key: value for key, value in self.module.state_dict().items() if isinstance(value, Tensor)
        }

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Moves the averages towards the model's tensors, one kernel a type of number, three where `bad` is known."""
        if not self.begun or self.interval != 1:
            super().update_parameters(model)
            self.begun = True
            return
        now = model.state_dict()
        kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for key, average in self.avg_parameters.items():
            if average.dtype.is_floating_point:
                averages, values = kinds.setdefault(average.dtype, ([], []))
                averages.append(own_part(average))
                values.append(own_part(now[key]))
        for averages, values in kinds.values():
            if self.bad is None:
                torch._foreach_lerp_(averages, values, self.momentum)
                continue
            weight = torch.where(self.bad, 0.0, self.momentum).to(averages[0].dtype)
            if not averages[0].is_cuda:
                torch._foreach_lerp_(averages, values, [weight] * len(averages))
                continue
            moves = torch._foreach_sub(values, averages)  # a GPU takes a kernel for each tensor if weights are tensors
            torch._foreach_mul_(moves, weight)
            torch._foreach_add_(averages, moves)
        self.steps += 1


class AveragingHook(EMAHook):
    """mmengine's EMAHook with `AveragedTensors`. Buffers are averaged with the weights: the raw network's BatchNorm
    statistics do not fit averaged weights.

    Args:
        momentum: of a step's weights in the average.
    """

    def __init__(self, momentum: float):
        super().__init__(AveragedTensors, momentum=momentum, update_buffers=True)

    def before_run(self, runner) -> None:
        """Makes the averages: a copy of the model, divided where the model is."""
        if runner.division is None:
            super().before_run(runner)
            return
        arguments = {key: value for key, value in self.ema_cfg.items() if key != "type"}
        self.src_model, self.ema_model = runner.inner_model, runner.division.averages(**arguments)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.ema_model.bad = runner.optim_wrapper.guard.bad
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

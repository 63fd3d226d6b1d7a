"""Keeps a step whose numbers are not finite away from the model, on the device: the loop does not wait to find out."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class Guard:
    """Finds out whether a step is finite, and undoes what its forward passes did to running statistics.

    From a step with a loss or a gradient that is not finite on, every loss is turned into NaN. So the gradients of all
    processes become NaN too, and all of them skip the same steps until the host has read why.

    Attributes:
        bad: 0-d bool on the device: such a step has come. None before the first step.
        losses: of the micro-batches of the running step so far, 0-d each.
        last: those of the step before.
    """

    def __init__(self) -> None:
        self.bad: Tensor | None = None
        self.losses: list[Tensor] = []
        self.last: list[Tensor] = []
        self.saved: list[tuple[list[Tensor], Tensor]] | None = None

    def begin(self, model: nn.Module) -> None:
        """Copies the running statistics; call it before the first forward pass of a step."""
        self.saved = [(buffers, _joined(buffers)) for buffers in running_statistics(model)]

    def see(self, loss: Tensor) -> Tensor:
        """The loss to take the gradient of: NaN where this one, or an earlier one, is not finite."""
        value = loss.detach()
        self.losses.append(value)
        good = torch.isfinite(value)
        if self.bad is not None:
            good = good & ~self.bad
        return loss * torch.where(good, 1.0, math.nan)

    def judge(self, norm: Tensor, overflows: bool = False) -> None:
        """Ends the step. Sets `bad` from the gradient's norm, which is NaN if any process has seen a loss that is not
        finite, and gives the running statistics back where the step is bad.

        Args:
            overflows: gradients may be infinite, since a GradScaler lowers its scale then; only losses count.
        """
        found = torch.stack(self.losses) if overflows else norm
        bad = ~torch.isfinite(found).all()
        self.bad = bad if self.bad is None else self.bad | bad
        self.last, self.losses = self.losses, []
        for buffers, before in self.saved or []:
            kept = torch.where(self.bad, before, _joined(buffers))
            parts = kept.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(b) for part, b in zip(parts, buffers, strict=True)])
        self.saved = None

    def numbers(self, norm: Tensor) -> Tensor:
        """(1 + micro-batches,) float32: the given norm and the losses of the last step."""
        return torch.stack([norm.float(), *(loss.float() for loss in self.last)])


def problem_of(numbers: list[float], overflows: bool = False) -> str | None:
    """What is not finite in the numbers of `Guard.numbers`, as part of a sentence; None where all is well.

    Args:
        overflows: as in `Guard.judge`.
    """
    norm, *losses = numbers
    broken = [loss for loss in losses if not math.isfinite(loss)]
    if broken:
        return f"the loss is {broken[0]}"
    return None if overflows or math.isfinite(norm) else f"the gradient's norm is {norm}"


def running_statistics(model: nn.Module) -> list[list[Tensor]]:
    """The buffers that norms in training mode change, those of one type together."""
    kinds: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
    for module in model.modules():
        if isinstance(module, _NormBase) and module.training:
            for buffer in (module.running_mean, module.running_var, module.num_batches_tracked):
                if buffer is not None:
                    kinds[buffer.dtype].append(buffer)
    return list(kinds.values())


def _joined(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.flatten() for buffer in buffers])

"""How much targets and predictions of features differ over a batch: a constant satisfies a loss on features.

Invariant: an ordinary step makes nobody wait. The numbers stay on the device until a line of the log is written.
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from a2mim.engine.health import PLATEAU
from a2mim.engine.hooks import LogHook
from a2mim.mim import MIM
from a2mim.targets import Held, MovingAverage
from a2mim.targets.moving import LEAST

CLEAR = 3 * LEAST  # deviation of predictions that are no constant


class Deviations:
    """Watches what the losses of a method are given in training: target and prediction in hidden cells.

    Nothing is watched where the target is no network's features, nor in a step that is compiled as a whole. Where all
    losses know directions alone (`scale_free`), each cell is first scaled to a mean square of 1.
    """

    def __init__(self, model: MIM):
        losses: list[nn.Module] = list(model.losses)
        self.seen: list[Tensor] = []  # (2,) of each micro-batch of this step
        self.scale_free = all(getattr(loss, "scale_free", False) for loss in losses)
        if isinstance(model.target, Held) and losses:
            losses[0].register_forward_pre_hook(self._watch)

    def _watch(self, loss: nn.Module, inputs: tuple) -> None:
        """Forward pre-hook of a loss."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # graphs hold no side effects; simple answers
            return
        recon, target, hidden = inputs
        self.seen.append(torch.stack([deviation(x, hidden, self.scale_free) for x in (target, recon)]))

    def clear(self) -> None:
        """Forgets the step before."""
        self.seen = []

    def values(self) -> dict[str, Tensor]:
        """Numbers for a line of the log, 0-d on the device; none where nothing was watched."""
        if not self.seen:
            return {}
        target, prediction = torch.stack(self.seen).mean(0)
        return {"target_std": target, "prediction_std": prediction}


@torch.no_grad()
def deviation(features: Tensor, hidden: Tensor, scale_free: bool = False) -> Tensor:
    """The deviation over the hidden cells of a batch, as the root of the mean variance of the channels; 0-d.

    Args:
        features: (B, C, h, w).
        hidden: (B, 1, h, w) bool.
        scale_free: scales each cell to a mean square of 1 before.
    """
    x = features.detach().float()
    if scale_free:
        x = x / x.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
    x = torch.where(hidden, x, 0.0)
    number = hidden.sum().clamp_min(1)
    mean = x.sum((0, 2, 3), keepdim=True) / number
    return (torch.where(hidden, x - mean, 0.0).square().sum((0, 2, 3)) / number).mean().sqrt()


class CollapseHook(Hook):
    """Stops a run whose target follows the encoder when the predictions have become a constant.

    Predictions may begin as one, and those of a single image nearly so. So the run stops when they fall below `LEAST`
    after they were above `CLEAR`, or when they are still below `LEAST` `PLATEAU` steps after the warm-up.

    Raises:
        FloatingPointError: from a step with a line of the log, on every process alike.
    """

    priority = 75  # after the log's line, before the checkpoint

    def __init__(self) -> None:
        self.above = False

    def before_train(self, runner) -> None:
        self.log: Any = runner.hook("log", LogHook)
        warmup = round(runner.run.settings.schedule.warmup_epochs * len(runner.run.loader))
        self.latest = warmup + PLATEAU

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        line = self.log.last
        if line.get("step") == runner.iter and "prediction_std" in line:
            self.see(runner.iter, line["prediction_std"])

    def see(self, step: int, value: float) -> None:
        """Looks at one number of the log."""
        self.above = self.above or value >= CLEAR
        if value < LEAST and (self.above or step > self.latest):
            raise FloatingPointError(
                f"step {step}: the predictions differ by {value:.2g} over the hidden cells of a batch (below {LEAST}):"
                " they have collapsed to a constant; try a slower teacher (momentum), a lower optimizer.base_lr, or a"
                " larger share of hidden cells"
            )


def follows_the_encoder(model: MIM) -> bool:
    """Whether the target can collapse together with the encoder."""
    return isinstance(model.target, MovingAverage)

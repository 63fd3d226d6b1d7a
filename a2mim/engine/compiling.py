"""torch.compile for the parts of a run: the network alone, or the whole forward pass of a training step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from a2mim.data.crops import height_and_width
from a2mim.engine.task import RecipeSettings, Task
from a2mim.mim import MIM
from a2mim.text import first_line

LOOKS = 8  # draws of a mask, to see whether all hide equally many cells


def compile_parts(task: Task, settings: RecipeSettings) -> None:
    """Compiles what the recipe's `compile` says, where its model is on the device. Nothing is traced before the first
    step.

    Raises:
        ValueError: the whole step of this task, or of this row of parts, cannot be one graph.
    """
    if settings.compile == "step":
        if settings.command == "refine":
            raise ValueError(
                "compile='step' is not for refinement, whose step looks up neighbours in a queue: choose"
                " compile='encoder'"
            )
        if isinstance(task.model, MIM):
            check_masks(task.model, settings)
        compile_step(task.model)
    elif settings.compile:
        task.network.compile()


def compile_step(model: nn.Module, **options: Any) -> None:
    """Compiles the forward pass of training, from stored images to losses, as one graph with constant shapes.

    Calls in evaluation mode or without gradients, such as those for pictures, stay eager, and so does a deep copy.

    Args:
        options: further arguments of torch.compile, e.g. `backend`.
    """
    if isinstance(model, MIM) and hasattr(model.encoder, "install_hooks"):  # an encoder of the user's own has none
        model.encoder.install_hooks()
    model.compile(fullgraph=True, dynamic=False, **options)
    compiled: Any = model._compiled_call_impl

    def call(*inputs: Any, **named: Any) -> Any:
        if not (model.training and torch.is_grad_enabled()):
            return model._call_impl(*inputs, **named)
        try:
            return compiled(*inputs, **named)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            raise ValueError(
                f"compile='step' cannot make one graph of this step ({first_line(error)}): go on with --resume"
                " --cfg-options compile=encoder"
            ) from error

    vars(model)["_compiled_call_impl"] = call  # where torch.nn.Module.__call__ looks; a copy leaves it out


def check_masks(model: MIM, settings: RecipeSettings) -> None:
    """ValueError where the masks of a row would need another graph in each step."""
    name = type(model.masking).__name__
    where = "choose compile='encoder', which takes any mask"
    data, hide = settings.data, getattr(model.encoder, "hide", "token")
    assert data.img_size is not None and data.in_chans is not None
    images = torch.zeros(2, data.in_chans, *height_and_width(data.img_size), dtype=torch.uint8)
    draws = [model.draw(images, torch.Generator().manual_seed(seed)) for seed in range(LOOKS)]
    if draws[0][0] is None:
        raise ValueError(f"compile='step' needs masks that do not depend on the images, and {name} reads them: {where}")
    counts = {cells for _, cells in draws}
    if hide != "token" and len(counts) > 1:
        raise ValueError(
            f"compile='step' needs masks that hide equally many cells in each step where hide={hide!r}, and {name} does"
            f" not: {where}"
        )

"""What a run needs to go on as if nothing had happened.

Tensors and plain values only, so that a checkpoint loads with `weights_only=True`. Randomness needs no saving: masks,
augmentations and dropout are functions of (seed, step).
"""

from __future__ import annotations

import torch

from a2mim.checkpoints import FORMAT, first_line
from a2mim.engine.fsdp import own_checkpoint
from a2mim.processes.fsdp import gathered, own_part
from a2mim.processes.group import least_of_all


def state_of(runner) -> dict:
    """Everything that a run needs to go on, and that an export needs to know of the encoder."""
    checkpoint = {
        "format": FORMAT,
        "state_dict": dict(runner.inner_model.state_dict()),
        "optimizer": runner.optim_wrapper.state_dict(),
        "loader": runner.run.loader.state_dict(),
        "meta": {"step": runner.iter, **runner.run.meta},
    }
    runner.call_hook("before_save_checkpoint", checkpoint=checkpoint)
    return checkpoint if runner.division is None else gathered(checkpoint)


def restore(runner, checkpoint: dict) -> None:
    """The inverse of `state_of`, strict in every part. The optimiser's settings are the recipe's, its state the saved
    one; the loader has taken up its own part already, so that what changed is refused before anything is built.
    """
    optimizer = runner.optim_wrapper.optimizer
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        if runner.division is not None:
            checkpoint = own_checkpoint(checkpoint, runner.inner_model, optimizer)
        runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        runner.inner_model.load_state_dict(trained_weights(checkpoint, averaging="ema" in runner.named_hooks))
        runner.optim_wrapper.load_state_dict(checkpoint["optimizer"])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a stranger's values may fail anywhere in torch
        raise ValueError(f"the checkpoint is of another model than this recipe's: {first_line(error)}") from error
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    runner.train_loop.seek(checkpoint["meta"]["step"])


def trained_weights(checkpoint: dict, averaging: bool) -> dict:
    """The weights that training goes on from. In a file, "state_dict" has the averaged ones where there are any.

    Args:
        averaging: the run keeps averages, whose hook has exchanged the two already.
    """
    if averaging or "ema_state_dict" not in checkpoint:
        return checkpoint["state_dict"]
    other = checkpoint["ema_state_dict"].items()
    return {key.removeprefix("module."): value for key, value in other if key.startswith("module.")}


def with_own_faults(loader: dict, rank: int, processes: int) -> dict:
    """A loader's state with this process's part of the faults that were counted over all: together they are as many."""
    parts = {reason: (count + processes - 1 - rank) // processes for reason, count in loader["faults"].items()}
    return loader | {"faults": parts}


def first_broken(model: torch.nn.Module) -> str | None:
    """The name of the first parameter that is not finite on any process, so that no checkpoint ever holds one."""
    parameters = dict(model.named_parameters())
    finite = least_of_all(torch.stack([torch.isfinite(own_part(p)).all() for p in parameters.values()]).cpu())
    return next((name for name, good in zip(parameters, finite.tolist(), strict=True) if not good), None)

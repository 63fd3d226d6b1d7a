"""Activations that are computed again in the backward pass, in place of being kept.

timm's own switch where the network has one that works, else torch's checkpointing of each repeated block.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def recompute_activations(network: nn.Module) -> None:
    """Switches it on for a timm model, or for an encoder with one inside.

    Running statistics are left alone when a block runs for the second time, so a step changes them once.

    Raises:
        ValueError: the network has neither a switch nor repeated blocks.
    """
    model = getattr(network, "model", network)
    if not _switched(model, True):
        blocks = repeated_blocks(model)
        if not blocks:
            raise ValueError(
                f"activation_checkpointing=True: {type(model).__name__} has no set_grad_checkpointing(), and no list of"
                " equal blocks that could be run again one by one; leave it out, and raise accumulate to save memory"
            )
        for block in blocks:
            block.forward = _Again(block)
    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            module.register_forward_pre_hook(_hold)
            module.register_forward_hook(_release, always_call=True)


def keep_activations(network: nn.Module) -> None:
    """Switches it off, so that a graph can be exported."""
    model = getattr(network, "model", network)
    _switched(model, False)
    for module in model.modules():
        vars(module).pop("forward", None) if isinstance(vars(module).get("forward"), _Again) else None
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [number for number, hook in hooks.items() if hook in (_hold, _release)]:
                del hooks[number]


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists that hold two or more modules of one class with parameters."""
    found: list[nn.Module] = []
    for child in model.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        kinds = Counter(type(member) for member in members if any(True for _ in member.parameters()))
        if kinds and max(kinds.values()) > 1:
            found += [member for member in members if kinds[type(member)] > 1]
        else:
            found += repeated_blocks(child)
    return found


class _Again:
    """The forward of a block that keeps no activations while it trains."""

    def __init__(self, block: nn.Module):
        self.block = block

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        plain: Any = type(self.block).forward
        if not (self.block.training and torch.is_grad_enabled()):
            return plain(self.block, *inputs, **named)
        return checkpoint(plain, self.block, *inputs, use_reentrant=False, **named)


def _switched(model: nn.Module, on: bool) -> bool:
    """Whether timm's switch exists and works."""
    if not hasattr(model, "set_grad_checkpointing"):
        return False
    switch: Any = model.set_grad_checkpointing
    try:
        switch(on)
    except (AssertionError, AttributeError, NotImplementedError, TypeError, ValueError):
        return False
    return True


def _hold(module: nn.Module, inputs: tuple) -> None:
    """Forward pre-hook: copies the running statistics where a backward pass runs the layer again."""
    if torch._C._current_graph_task_id() != -1 and module.training:
        vars(module)["_statistics"] = [buffer.clone() for buffer in module.buffers(recurse=False)]


def _release(module: nn.Module, inputs: tuple, output: Any) -> None:
    """Forward hook: gives the copies back; through `data`, so that autograd sees no change to what it has saved."""
    for buffer, before in zip(module.buffers(recurse=False), vars(module).pop("_statistics", []), strict=False):
        buffer.data.copy_(before)

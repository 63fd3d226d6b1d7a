"""`processes.strategy="fsdp"`: how a run's model is divided over its processes, and what does not go with that."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from a2mim.engine.activations import repeated_blocks
from a2mim.engine.averaging import AveragedTensors
from a2mim.engine.task import RecipeSettings
from a2mim.processes.fsdp import Whole, divide, divided_like, mesh_of_all
from a2mim.targets.held import Held

OPTIMISERS = ("adamw", "adam", "nadamw", "sgd", "momentum", "lion")  # a weight's update needs no other weight
METHODS = ("baselines",)  # of models, that use weights beside `forward`


def is_divided(settings: RecipeSettings, world_size: int) -> bool:
    """Whether a run divides its model: on one process there is nothing to divide."""
    return settings.processes.strategy == "fsdp" and world_size > 1


def check_divided(settings: RecipeSettings) -> None:
    """ValueError where another setting does not go with a divided model."""
    optimiser = settings.optimizer.type.lower()
    refused = {
        f"compile={settings.compile!r}, because FSDP gathers weights between the operations of a graph": bool(
            settings.compile
        ),
        "channels_last=True, because FSDP divides contiguous weights alone": settings.channels_last,
        "accumulate='auto', whose trial step takes the whole model": settings.accumulate == "auto",
        f"optimizer.type={optimiser!r}, which may need whole weights ({', '.join(OPTIMISERS)} do not)": optimiser
        not in OPTIMISERS,
        "refinement, whose first epochs leave the encoder without gradients": settings.command == "refine",
    }
    for what, given in refused.items():
        if given:
            raise ValueError(f"processes.strategy='fsdp' does not go with {what}: change it, or leave the strategy out")


@dataclass
class Division:
    """What a run with a divided model needs beside it.

    Args:
        mesh: the processes.
        whole: a plain copy of the model, for work between steps.
        shared: a copy that shares the networks of the target; averaged weights begin with it. None: there are none.
    """

    mesh: DeviceMesh
    whole: Whole
    shared: nn.Module | None

    def averages(self, **arguments: Any) -> AveragedTensors:
        """Averaged weights, divided as the model is."""
        assert self.shared is not None
        averages = AveragedTensors(self.shared, **arguments)
        self.shared = None  # it has been copied
        divide(averages.module, blocks_of(averages.module), self.mesh)
        averages.read_tensors()
        return averages


def divide_model(model: nn.Module, settings: RecipeSettings, device: torch.device) -> Division:
    """Divides a model that lies on the CPU, and the networks that its target holds; call it before the optimiser is
    made.
    """
    mesh = mesh_of_all(device)
    plain = copy.deepcopy(model)
    for part in plain.modules():
        if isinstance(part, Held):
            part.separate()
    division = Division(mesh, Whole(plain), copy.deepcopy(model) if settings.ema else None)
    for part in model.modules():
        for network in part.networks().values() if isinstance(part, Held) else ():
            divide(network, blocks_of(network), mesh)
    divide(model, blocks_of(model), mesh, [method for method in METHODS if hasattr(model, method)])
    model.to(device)
    return division


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Repeated blocks, inner ones first: a stage that consists of blocks comes after them. None shares a weight.

    A single layer is none: it holds too little to be worth a message of its own. And where sparse hiding makes a norm's
    output a view, an activation in place would hide the backward pass from torch.
    """
    found: list[nn.Module] = []
    for block in repeated_blocks(model):
        members = repeated_blocks(nn.ModuleList([block]))  # in a list, so that a stage may be a list itself
        inner = [each for each in members if any(True for _ in each.children())]
        if 2 * sum(map(size_of, inner)) > size_of(block):
            found += inner
        found.append(block)
    times = Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
    return [
        block
        for block in found
        if any(True for _ in block.children())
        and type(block).forward is not nn.Module.forward  # a bare list is never called
        and all(times[parameter] == 1 for parameter in block.parameters())  # torch divides a shared one in the root
    ]


def size_of(module: nn.Module) -> int:
    """Numbers in all of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def own_checkpoint(checkpoint: dict, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """A checkpoint with this process's part of the weights, of the averaged weights and of the optimiser's state."""
    like = model.state_dict()
    own = checkpoint | {"state_dict": divided_like(checkpoint["state_dict"], like)}
    if "ema_state_dict" in checkpoint:
        averaged = {f"module.{key}": value for key, value in like.items()}
        own["ema_state_dict"] = divided_like(checkpoint["ema_state_dict"], averaged)
    saved = checkpoint["optimizer"]["optimizer"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    of_number = dict(zip(numbers, parameters, strict=False))  # torch refuses another number of them, with the reason
    states = {
        number: {key: divided_like(value, of_number.get(number)) for key, value in state.items()}
        for number, state in saved["state"].items()
    }
    own["optimizer"] = checkpoint["optimizer"] | {"optimizer": saved | {"state": states}}
    return own

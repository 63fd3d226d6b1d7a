"""Fully sharded training (torch's FSDP2): each process holds a part of every weight, gradient and optimiser state.

A block's weights are gathered while it runs, and given up afterwards. Invariant: between two steps every weight is
divided; what leaves the training (checkpoints, the whole model) is gathered by all processes together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from a2mim.processes.group import is_first

Value = TypeVar("Value")


def mesh_of_all(device: torch.device) -> DeviceMesh:
    """All processes of the run, over which weights are divided."""
    return init_device_mesh(device.type, (distributed.get_world_size(),))


def divide(model: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, methods: Iterable[str] = ()) -> None:
    """Divides a model's weights over all processes, in place, and moves it to the mesh's device.

    Args:
        blocks: modules whose weights are gathered and given up together; the rest of the model is one more of them.
        methods: of the model, that use its weights beside `forward`.

    Raises:
        ValueError: a weight that cannot be divided, by name.
    """
    for name, parameter in model.named_parameters():
        if not parameter.ndim or not parameter.is_contiguous():
            what = "one number without an axis" if not parameter.ndim else "not contiguous in memory"
            raise ValueError(
                f"processes.strategy='fsdp' cannot divide {name} of {type(model).__name__}, which is {what}: leave the"
                " strategy out"
            )
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for method in methods:
        register_fsdp_forward_method(model, method)


def exchange_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass of a divided model exchanges gradients; other models are left alone."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; the tensor itself where it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A divided tensor as one; all processes must ask for it. The tensor itself where it is not divided."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(value: Any) -> Any:
    """Plain containers with every divided tensor as one, on the CPU of the first process; None on the others.

    All processes must come here, with the same keys in the same order.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if is_first() else None
    if isinstance(value, dict):
        return {key: gathered(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(inner) for inner in value)
    return value


def divided_like(value: Any, like: Any) -> Any:
    """The inverse of `gathered`, without any message: this process's part of whole tensors that it has read.

    Args:
        like: containers with the same keys, whose tensors say what is divided.
    """
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.ndim:
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    if isinstance(value, dict) and isinstance(like, Mapping):
        return type(value)((key, divided_like(inner, like.get(key))) for key, inner in value.items())
    return value


class Whole:
    """A plain copy of a model that is to be divided. It lies on the CPU, and takes the weights when it is asked for.

    Args:
        model: the copy, which shares nothing with the model.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    @contextmanager
    def of(self, divided: nn.Module, device: torch.device) -> Iterator[nn.Module]:
        """The copy on the device, with the weights that the divided model has now; all processes must come here."""
        self.model.to(device)
        _fill(self.model.state_dict(), divided.state_dict())
        try:
            yield self.model
        finally:
            self.model.to("cpu")


@torch.no_grad()
def _fill(state: Mapping[str, Any], divided: Mapping[str, Any]) -> None:
    """Copies tensors into those of the same key."""
    for key, value in state.items():
        if isinstance(value, Tensor):
            value.copy_(whole(divided[key]))
        elif isinstance(value, dict):
            _fill(value, divided[key])

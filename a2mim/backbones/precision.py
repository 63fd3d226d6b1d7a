"""Arithmetic that must not run in half precision: sums over all tokens, norms and softmax."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Lets the operations on tensors of this device keep their types; autocast would round every product."""
    device_type = tensor.device.type
    if device_type == "meta":  # it has no autocast; torch's own question for that cannot be compiled by torch 2.9
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def widen(*tensors: Tensor) -> list[Tensor]:
    """float32, or float64 where the tensor has it."""
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]

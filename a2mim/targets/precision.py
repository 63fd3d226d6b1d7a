"""Targets are computed in float32."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(like: Tensor) -> AbstractContextManager:
    """A context without autocast on the tensor's device; the meta device knows no autocast."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)

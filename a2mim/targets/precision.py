"""Targets are computed in float32."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def full_precision(like: Tensor) -> AbstractContextManager:
    """A context without autocast on the tensor's device; the meta device knows no autocast."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def run_teacher(teacher: nn.Module, images: Tensor) -> Any:
    """teacher(images) without autocast, in the type of the teacher's weights: float32 as a rule."""
    weight = next(teacher.parameters(), None)
    with full_precision(images):
        return teacher(images if weight is None else images.to(weight.dtype))

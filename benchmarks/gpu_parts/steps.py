"""Training steps that are compared: the whole step of a recipe and that of the bare backbone; how they are timed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from a2mim.engine.assembly import build_mim
from a2mim.engine.compiling import compile_step
from a2mim.engine.config import load_config
from a2mim.engine.optim import StepWrapper, build_optimizer

from .scale import Network, Scale

Step = Callable[[], object]
ROUNDS = 3


def recipe_of(network: Network, px: int, cell: int, **changes: Any) -> Any:
    """The settings of the network's recipe, for images of px × px and mask cells of cell × cell pixels.

    Args:
        changes: dotted setting -> value.
    """
    chosen = {
        "model.encoder.name": network.name,
        "model.encoder.model_args": dict(network.arguments),
        "model.masking.mask_patch_size": cell,
        "data.img_size": px,
    }
    return load_config(network.recipe, chosen | changes)


def host_batch(batch: int, px: int, device: torch.device) -> torch.Tensor:
    """Random stored images (batch, 3, px, px) uint8, in pinned memory beside a GPU, as the loader gives them."""
    images = torch.randint(0, 256, (batch, 3, px, px), dtype=torch.uint8)
    return images.pin_memory() if device.type == "cuda" else images


def whole_step(
    settings: Any, scale: Scale, batch: int, precision: str, layout: torch.memory_format, compiled: str
) -> tuple[Step, nn.Module]:
    """(what a run does with each batch, loading aside, the model).

    Args:
        precision: "bf16", "tf32" or "fp32".
        compiled: "eager", or a value of the setting `compile`: "encoder", "step".
    """
    device = scale.where
    torch.manual_seed(0)
    model = build_mim(settings).to(device).train()
    model.to(memory_format=layout)  # type: ignore[call-overload]
    wrapper = StepWrapper(
        build_optimizer(model, settings.optimizer, batch),
        "bf16" if precision == "bf16" else None,
        device.type,
        clip_grad=settings.clip_grad,
    )
    host, generator = host_batch(batch, scale.px, device), torch.Generator(model.mask_device(device))
    if compiled == "encoder":
        model.encoder.compile(backend=scale.backend)
    if compiled == "step":
        compile_step(model, backend=scale.backend)

    def step() -> None:
        images = host.to(device, non_blocking=True, memory_format=layout)
        mask, cells = model.draw(images, generator)
        known = (
            {} if cells is None or (compiled == "step" and model.encoder.hide == "token") else {"hidden_cells": cells}
        )
        model.train_step({"images": images, "mask": mask, **known}, wrapper)

    return step, model


def bare_step(
    network: Network, scale: Scale, batch: int, precision: str, layout: torch.memory_format, compiled: str, frozen: set
) -> Step:
    """Forward, mean of the feature map, backward and fused AdamW on the backbone alone, its images on the device.

    Args:
        frozen: names of the parameters that the whole step does not train either.
    """
    device = scale.where
    model = timm.create_model(network.name, num_classes=0, **network.bare_arguments(scale.px)).to(device).train()
    model.to(memory_format=layout)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    images = torch.rand(batch, 3, scale.px, scale.px, device=device).to(memory_format=layout)
    features = model.forward_features
    if compiled != "eager":
        features = torch.compile(features, backend=scale.backend, dynamic=False)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = features(images).float().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def alternate(first: Step, second: Step, steps: int, device: torch.device) -> tuple[float, float, float]:
    """(seconds of a step of the first, of the second, their ratio): medians of rounds in which they take turns."""
    pairs = [tuple(seconds(step, max(1, steps // ROUNDS), device) for step in (first, second)) for _ in range(ROUNDS)]
    ratio = statistics.median(one / other for one, other in pairs)
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs), ratio


def seconds(step: Step, number: int, device: torch.device) -> float:
    """Seconds of one step, over `number` of them."""
    finish(device)
    started = time.perf_counter()
    for _ in range(number):
        step()
    finish(device)
    return (time.perf_counter() - started) / number


def finish(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def warm(step: Step, device: torch.device) -> None:
    """Steps that are not measured: they compile, choose kernels and fill the memory pool."""
    for _ in range(1 if device.type == "cpu" else 3):
        step()
    finish(device)


def forget(device: torch.device) -> None:
    """Gives compiled graphs and unused memory back, and starts the peak of memory anew."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: torch.device) -> float | None:
    """The most memory that tensors took since `forget`, in GiB; None on a CPU."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None


def operations(network: Network, px: int, device: torch.device) -> float:
    """Floating-point operations of the backbone for one image, forward and backward; a multiply-add counts as two."""
    model = timm.create_model(network.name, num_classes=0, **network.bare_arguments(px)).to(device).train()
    images = torch.rand(2, 3, px, px, device=device)
    with FlopCounterMode(display=False) as counter:
        model.forward_features(images).float().mean().backward()
    return counter.get_total_flops() / 2

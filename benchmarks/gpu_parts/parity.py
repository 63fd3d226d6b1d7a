"""Whether the device computes what the CPU computes: one step from the same weights, images and mask."""

from __future__ import annotations

import math
from typing import Any

import torch

from a2mim.engine.assembly import build_mim

from .isolation import Findings
from .scale import Scale
from .steps import recipe_of

# precision -> largest relative difference of a loss, and of the gradient's norm
LIMITS = {"fp32": (1e-4, 1e-2), "tf32": (2e-2, 2e-1), "bf16": (5e-2, 5e-1)}
SIZE, BATCH = 64, 8


def run(scale: Scale, findings: Findings) -> None:
    """Each small network in float32, TF32 and bf16, beside float32 on the CPU."""
    for network in scale.parity:
        settings = recipe_of(network, SIZE, cell=16)
        torch.manual_seed(0)
        weights = build_mim(settings).state_dict()
        reference = losses_of(settings, weights, torch.device("cpu"), "fp32")
        for precision, limits in LIMITS.items():
            found = losses_of(settings, weights, scale.where, precision)
            off = {name: abs(found[name] - value) / max(abs(value), 1e-12) for name, value in reference.items()}
            good = all(math.isfinite(d) and d < limits[name == "norm"] for name, d in off.items())
            findings.add(f"{network.name}, {precision}", **{k: f"{v:.1e}" for k, v in off.items()}, good=good)


def losses_of(settings: Any, weights: dict, device: torch.device, precision: str) -> dict[str, float]:
    """The losses of one forward pass by name, and "norm": the L2 norm of the gradient."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    model = build_mim(settings).to(device).train()
    model.load_state_dict(weights)
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    images = images.to(torch.uint8).to(device)
    mask = model.masking(BATCH, SIZE, SIZE, generator=torch.Generator().manual_seed(2), device=torch.device("cpu"))
    torch.manual_seed(3)  # of what the networks drop
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        losses = model(images, mask=mask.to(device))
    torch.stack(list(losses.values())).sum().backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return {name: value.item() for name, value in losses.items()} | {"norm": norm.item()}

"""What each part of a training step costs: processor time on one thread, median over steps, and its share.

python benchmarks/parts.py [--model xcit_nano_12_p16_224] [--px 64] [--batch-size 32] [--steps 12]

The backward pass is cut where the losses, the decoder and the encoder meet. Parts of under 0.05 % are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from engine import ROOT, recipe_of
from torch import nn

from a2mim.engine.assembly import build_mim
from a2mim.engine.config import load_config
from a2mim.engine.optim import StepWrapper, build_optimizer
from a2mim.masking import expand_mask


class Clock:
    """Seconds of processor time by part, one entry a step."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, list[float]] = defaultdict(list)

    def __call__(self, part: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        self.spent[part].append(time.process_time() - started)
        return result


def take_step(model: Any, wrapper: StepWrapper, images: torch.Tensor, clock: Clock) -> None:
    """One step of the recipe, part by part."""
    height, width = images.shape[-2:]
    clock("guard", lambda: wrapper.guard.begin(model))
    mask, _ = clock("mask", lambda: model.draw(images, torch.Generator()))
    pixels, target, mask = clock("normalising", lambda: model.prepare(images, mask))
    hidden = expand_mask(mask, height, width)
    masked = clock("fill", lambda: model.fill(pixels, hidden))
    maps, prefixes = clock("encoder, forward", lambda: model.encode(masked, mask))
    recon = clock("decoder, forward", lambda: model.decode((maps, prefixes), height, width, mask))
    losses = [
        clock(f"{name}, forward", lambda loss=loss: loss(recon, target, hidden))
        for name, loss in zip(model.loss_names, model.losses, strict=True)
    ]
    total = wrapper.guard.see(sum(weight * loss for weight, loss in zip(model.weights, losses, strict=True)))
    back = clock("losses, backward", lambda: torch.autograd.grad(total, recon, retain_graph=True))
    weights = list(model.decoders.parameters())
    found = clock("decoder, backward", lambda: torch.autograd.grad(recon, [*maps, *weights], back, retain_graph=True))
    clock("encoder, backward", lambda: torch.autograd.backward(maps, found[: len(maps)]))
    for weight, gradient in zip(weights, found[len(maps) :], strict=True):
        weight.grad = gradient
    trained = [p for p in model.parameters() if p.grad is not None]
    norm = clock("gradient norm", lambda: nn.utils.get_total_norm([p.grad for p in trained]))
    clock("guard, end", lambda: wrapper.guard.judge(norm))
    if wrapper.max_norm is not None:
        clock("clipping", lambda: nn.utils.clip_grads_with_norm_(trained, wrapper.max_norm, norm))
    clock("optimiser", lambda: (wrapper.optimizer.step(), wrapper.optimizer.zero_grad()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="xcit_nano_12_p16_224")
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    cell = 16 if chosen.px % 32 or chosen.px < 128 else 32
    changes = {"model.encoder.name": chosen.model, "data.img_size": chosen.px, "model.masking.mask_patch_size": cell}
    settings = load_config(ROOT / "configs" / recipe_of(chosen.model), changes)
    model: Any = build_mim(settings).train()
    optimizer = build_optimizer(model, settings.optimizer, settings.global_batch_size)
    wrapper = StepWrapper(optimizer, None, "cpu", clip_grad=settings.clip_grad)
    images = torch.randint(0, 256, (chosen.batch_size, 3, chosen.px, chosen.px), dtype=torch.uint8)
    take_step(model, wrapper, images, Clock())
    clock = Clock()
    for _ in range(chosen.steps):
        take_step(model, wrapper, images, clock)
    medians = {part: 1000 * statistics.median(spent) for part, spent in clock.spent.items()}
    whole = sum(medians.values())
    print(f"{chosen.model}, {chosen.px} px, batch {chosen.batch_size}: {whole:.1f} ms a step")
    for part, spent in sorted(medians.items(), key=lambda item: -item[1]):
        if spent > whole / 2000:
            print(f"{part:24} {spent:8.2f} ms {spent / whole:6.1%}")


if __name__ == "__main__":
    main()

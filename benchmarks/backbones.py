"""Time and peak memory of forward and backward against the number of tokens, X-ViT, LinGlo and XCiT beside a plain ViT.

python benchmarks/backbones.py [--sides 224 448 672 896] [--batch-size 1] [--rounds 3] [--device cpu] [--models …]

All are about as wide (384; LinGlo-B1 has 320 at stride 16) and see the same images; tokens are those of stride 16. The
ViT runs twice: with torch's fused attention, which never holds the N x N matrix, and without.

Every figure comes from a process of its own. Memory: the process's largest resident set during one step, less what it
held before, after a step at 64 px has made gradients and loaded libraries (on a GPU, the allocator's peak less what was
allocated). Time: the median of the rounds, the models taking turns in each. The exponents are slopes of log cost
against log tokens: over all sizes, and between the last two, where constant costs weigh least.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODELS = {  # what is printed -> timm's name and whether attention is fused
    "xvit_small_p16_224": ("xvit_small_p16_224", True),
    "linglo_b1": ("linglo_b1", True),
    "xcit_small_12_p16_224": ("xcit_small_12_p16_224", True),
    "vit_small_patch16_224": ("vit_small_patch16_224", True),
    "vit_small_patch16_224, N x N": ("vit_small_patch16_224", False),
}
STATUS = Path("/proc/self/status")


def resident(what: str) -> int:
    """Bytes: VmRSS, resident now, or VmHWM, the most since the last reset."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])


def build(label: str, device: str):
    """A step (images -> None) of a model in training mode."""
    import a2mim  # noqa: F401  before timm: it mends torchvision

    # isort: split
    import timm
    from timm.layers import set_fused_attn

    name, fused = MODELS[label]
    set_fused_attn(fused)
    sizes = {"dynamic_img_size": True} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=0, **sizes).to(device).train()

    def step(images):
        model.forward_features(images).float().mean().backward()

    return step


def measure_memory(label: str, side: int, batch_size: int, device: str) -> float:
    """MiB that one step needs at its peak, over what the process holds between steps."""
    import torch

    step = build(label, device)
    step(torch.randn(batch_size, 3, 64, 64, device=device))
    images = torch.randn(batch_size, 3, side, side, device=device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(images)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    step(images)
    return (resident("VmHWM") - before) / 2**20


def measure_time(label: str, side: int, batch_size: int, device: str) -> float:
    """Seconds of the second step at this size, in a process whose first has set everything up."""
    import torch

    step = build(label, device)
    images = torch.randn(batch_size, 3, side, side, device=device)
    for _ in range(2):
        if device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        step(images)
        if device != "cpu":
            torch.cuda.synchronize()
    return time.perf_counter() - started


MEASURES = {"memory": measure_memory, "time": measure_time}


def in_own_process(what: str, label: str, side: int, batch_size: int, device: str) -> float:
    # glibc keeps freed blocks of up to 32 MiB, as it learns their size; a fixed threshold gives them back at once.
    environment = dict(os.environ, **({"MALLOC_MMAP_THRESHOLD_": "1048576"} if what == "memory" else {}))
    arguments = json.dumps([what, label, side, batch_size, device])
    command = [sys.executable, __file__, "--one", arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{label} at {side} px: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def slope(tokens: list[int], costs: list[float]) -> float:
    """Least-squares slope of log cost against log tokens."""
    x, y = ([math.log(v) for v in values] for values in (tokens, costs))
    return statistics.linear_regression(x, y).slope


def table(what: str, unit: str, costs: dict[str, list[float]], tokens: list[int]) -> str:
    head = "| ".join([f"{what}, {unit}; tokens: ", *(f"{n:,} " for n in tokens), "exponent ", "last two "])
    rows = [f"| {head}|", "|---" * (len(tokens) + 3) + "|"]
    for label, values in costs.items():
        exponents = slope(tokens, values), slope(tokens[-2:], values[-2:])
        figures = [f"{v:,.3g}" if v < 1000 else f"{v:,.0f}" for v in values] + [f"{e:.2f}" for e in exponents]
        rows.append(f"| {label} | " + " | ".join(figures) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 448, 672, 896], help="pixels, multiples of 32")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(MEASURES[chosen.one[0]](*chosen.one[1:]))
        return
    if len(chosen.sides) < 2:
        parser.error("--sides needs at least two sizes, or there is no exponent")
    tokens = [(side // 16) ** 2 for side in chosen.sides]
    cells = [(label, side) for side in chosen.sides for label in chosen.models]
    common = (chosen.batch_size, chosen.device)
    memory = {cell: in_own_process("memory", *cell, *common) for cell in cells}
    rounds = [{cell: in_own_process("time", *cell, *common) for cell in cells} for _ in range(chosen.rounds)]
    seconds = {cell: statistics.median(taken[cell] for taken in rounds) for cell in cells}
    print(f"forward and backward, batch {chosen.batch_size}, {chosen.device}, {chosen.rounds} rounds\n")
    for what, unit, found in (("peak memory", "MiB", memory), ("time", "s", seconds)):
        costs = {label: [found[label, side] for side in chosen.sides] for label in chosen.models}
        print(table(what, unit, costs, tokens), end="\n\n", flush=True)


if __name__ == "__main__":
    main()

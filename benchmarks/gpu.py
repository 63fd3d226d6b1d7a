"""Asks all that matters of one GPU in one call, in under nine minutes, without a network.

python benchmarks/gpu.py [--out gpu_results] [--budget 500] [--parts parity waits …]
python benchmarks/gpu.py --dry-run

- machine: card, cores, versions;
- parity: one step on GPU and CPU from the same weights, images and mask, in float32, TF32 and bf16;
- waits: how often a step makes the host wait for the device, and where;
- rivals: MAE and SimMIM of ViT-B/16 beside LightlySSL's where it is installed, else beside a plain loop in torch;
- resuming: a run killed and resumed, beside two undisturbed ones, with default and with deterministic kernels;
- data: the loader alone, and how long a run waits for data, on synthetic shards;
- speed: images/s, peak memory and MFU of XCiT-S12/16, ResNet-50 and ViT-B/16, eager and compiled, in both memory
  formats, beside the bare backbone in the same run. MFU counts the backbone's operations alone.

Each part has a limit on its time, and a process of its own: a part that fails or is too slow is named in the result,
and the others go on. The last part takes the time that the others left. OUT gets gpu.json and gpu.md, the tables for
docs/performance.md, which are also printed. The status is 1 if a part failed or a check did not hold.

--dry-run, also taken where torch finds no GPU, runs every part with tiny networks on the CPU. Its figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import a2mim  # noqa: F401  before timm: it mends torchvision

# isort: split
from gpu_parts import data, machine, parity, resuming, rivals, speed, table, waits
from gpu_parts.isolation import Outcome, run_part
from gpu_parts.scale import DRY, FULL, Scale

PARTS = {  # name -> (what it runs, its share of the budget); the last part takes all that is left
    "machine": (machine.run, 0.04),
    "parity": (parity.run, 0.08),
    "waits": (waits.run, 0.06),
    "rivals": (rivals.run, 0.10),
    "resuming": (resuming.run, 0.16),
    "data": (data.run, 0.20),
    "speed": (speed.run, 1.0),
}
LEAST = 5.0  # seconds: with less left, a part is not begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="folder of the results")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds that all parts may take together")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="which parts")
    parser.add_argument("--dry-run", action="store_true", help="tiny networks on the CPU")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scale = DRY if chosen.dry_run or not gpu_found(Path(folder)) else FULL
        if scale.dry:
            print("a dry run on the CPU: it proves that the parts run; its figures say nothing", flush=True)
        result = ask(scale, chosen.parts, chosen.budget, Path(folder), chosen.out / "gpu.json")
    text = table.markdown(result)
    (chosen.out / "gpu.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{chosen.out / 'gpu.json'}")
    return int(bool(result["not_good"]))


def gpu_found(folder: Path) -> bool:
    """Whether torch finds a GPU."""
    found = run_part(machine.has_gpu, (), folder / "gpu.jsonl", limit=60).found
    return bool(found and found[0]["found"])


def ask(scale: Scale, parts: list[str], budget: float, folder: Path, path: Path) -> dict:
    """Runs the parts in turn. The result is written to `path` after each, so that an interrupted call keeps its finds.

    Args:
        budget: seconds for all.
        folder: for what the parts write on their way.
    """
    started = time.time()
    result: dict = {"dry": scale.dry, "seconds": 0.0, "not_good": [], "parts": {}}
    for name in (name for name in PARTS if name in parts):
        function, share = PARTS[name]
        limit = min(share * budget, budget - (time.time() - started))
        print(f"{name}: at most {limit:.0f} s", flush=True)
        outcome = Outcome("left out", error="no time was left")
        if limit >= LEAST:
            own = folder / name
            own.mkdir()
            outcome = run_part(function, (scale,), own / "found.jsonl", limit)
        result["parts"][name] = asdict(outcome)
        result["seconds"] = round(time.time() - started, 1)
        if not outcome.good:
            result["not_good"].append(name)
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    return result


if __name__ == "__main__":
    sys.exit(main())

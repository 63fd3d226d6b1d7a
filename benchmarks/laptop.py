"""Minutes of the recipes at laptop scale on two idle cores, estimated: the numbers in their docstrings.

python benchmarks/laptop.py [RECIPE …]

Measured is the processor time of forward and backward for an image, on one thread, so that other work on the machine
matters little. A recipe's minutes follow from its ratio to a2mim_xcit, whose training takes TRAINING seconds, and from
REST seconds for start, judgement and export (docs/performance.md). Loading data is taken to cost each recipe the same.
"""

import sys
import time
from pathlib import Path

import torch

from a2mim.data.crops import height_and_width
from a2mim.engine.assembly import build_mim
from a2mim.engine.config import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
YARDSTICK, TRAINING, REST = "a2mim_xcit", 152, 47  # 768 steps of 32 at 162 images/s; all else of the first command
IMAGES, BATCH, ROUNDS = 4096, 16, 4  # of the built-in photographs; of a step measured here; steps


def core_seconds(recipe: str) -> float:
    """Processor seconds of all steps of a recipe's laptop scale."""
    settings = load_config(CONFIGS / f"{recipe}.py", laptop=True)
    torch.manual_seed(0)
    model = build_mim(settings).train()
    size = height_and_width(settings.data.img_size)
    images = torch.randint(0, 256, (BATCH, settings.data.in_chans, *size), dtype=torch.uint8)
    spent = []
    for _ in range(ROUNDS):
        start = time.process_time()
        torch.stack(list(model(images, mode="loss").values())).sum().backward()
        spent.append(time.process_time() - start)
        model.zero_grad()
    batch = settings.global_batch_size
    return min(spent) / BATCH * batch * int(settings.schedule.epochs * (IMAGES // batch))


def main() -> None:
    torch.set_num_threads(1)
    unit = core_seconds(YARDSTICK)
    for recipe in sys.argv[1:] or [path.stem for path in sorted(CONFIGS.glob("*.py"))]:
        seconds = core_seconds(recipe)
        print(
            f"{recipe:24} {(TRAINING * seconds / unit + REST) / 60:4.1f} min  {seconds:6.0f} core-seconds", flush=True
        )


if __name__ == "__main__":
    main()

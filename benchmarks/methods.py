"""What a step of each method costs over the bare backbone, as a ratio measured side by side in one run.

python benchmarks/methods.py [--rows mae_vit_small spark_resnet50 …] [--batch-size 4] [--rounds 5]

Bare: forward, mean of the feature map, backward, on whole images. Row: the recipe as written: mask, target, encoder,
decoder, losses, backward. Both take turns on one thread; times are the process's own, so that other work on the machine
hardly counts. The optimiser is left out: it costs the same for both but for the decoder's parameters.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import a2mim  # noqa: F401  before timm: it mends torchvision

# isort: split
import timm
import torch

from a2mim.engine.assembly import build_mim
from a2mim.engine.config import load_config

ROWS = ["mae_vit_small", "mff_vit_small", "a2mim_vit_small", "spark_resnet50", "a2mim_resnet50"]
Step = Callable[[], None]


def row_step(row: str, batch_size: int) -> tuple[Step, Step]:
    """(a step of the row, a step of its bare backbone), both on images of the recipe's size."""
    settings = load_config(row)
    model = build_mim(settings).train()
    size = batch_size, settings.data.in_chans, settings.data.img_size, settings.data.img_size
    images = torch.randint(0, 256, size, dtype=torch.uint8)
    plain = {key: value for key, value in model.encoder.model_args.items() if key != "drop_path_rate"}
    bare = timm.create_model(model.encoder.name, num_classes=0, **plain).train()
    floats = images.float() / 255

    def step() -> None:
        losses = model(images, generator=torch.Generator().manual_seed(0))
        torch.stack(list(losses.values())).sum().backward()
        model.zero_grad()

    def bare_step() -> None:
        bare.forward_features(floats).mean().backward()
        bare.zero_grad()

    return step, bare_step


def seconds(step: Step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def compare(row: str, batch_size: int, rounds: int) -> str:
    pair = row_step(row, batch_size)
    for step in pair:
        step()
    times = [(seconds(pair[0]), seconds(pair[1])) for _ in range(rounds)]
    ratios = sorted(whole / bare for whole, bare in times)
    whole, bare = (1000 * statistics.median(t) / batch_size for t in zip(*times, strict=True))
    spread = f"{ratios[0]:.2f}–{ratios[-1]:.2f}"
    return f"{row}: {statistics.median(ratios):.2f} ({spread}); {whole:.0f} against {bare:.0f} ms an image"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS, help="recipes")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for row in chosen.rows:
        print(compare(row, chosen.batch_size, chosen.rounds), flush=True)


if __name__ == "__main__":
    main()

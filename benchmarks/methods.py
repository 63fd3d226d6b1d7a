"""What a step of each method costs over the bare backbone, or over pixels, as a ratio measured side by side in one run.

python benchmarks/methods.py [--rows mae_vit_small spark_resnet50 …] [--over-pixels] [--batch-size 4] [--rounds 5]

Bare: forward, mean of the feature map, backward, on whole images. Row: the recipe as written: mask, target, encoder,
decoder, losses, backward. `--over-pixels`: the same recipe with pixels as its target, instead of the bare backbone.
Both take turns on one thread; times are the process's own, so that other work on the machine hardly counts. The
optimiser is left out: it costs the same for both but for the decoder's parameters.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import a2mim  # noqa: F401  before timm: it mends torchvision

# isort: split
import timm
import torch
from torch import Tensor

from a2mim.engine.assembly import build_mim
from a2mim.engine.config import load_config
from a2mim.engine.pretrain_settings import PretrainSettings

ROWS = ["mae_vit_small", "mff_vit_small", "a2mim_vit_small", "spark_resnet50", "a2mim_resnet50"]
Step = Callable[[], None]


def row_step(settings: PretrainSettings, images: Tensor) -> Step:
    """A step of the row on stored images (B, C, H, W)."""
    model = build_mim(settings).train()

    def step() -> None:
        losses = model(images, generator=torch.Generator().manual_seed(0))
        torch.stack(list(losses.values())).sum().backward()
        model.zero_grad()

    return step


def bare_step(settings: PretrainSettings, images: Tensor) -> Step:
    """A step of timm's network alone, without stochastic depth."""
    encoder, floats = settings.model.encoder, images.float() / 255
    plain = {key: value for key, value in encoder.model_args.items() if key != "drop_path_rate"}
    bare = timm.create_model(encoder.name, num_classes=0, **plain).train()

    def step() -> None:
        bare.forward_features(floats).mean().backward()
        bare.zero_grad()

    return step


def seconds(step: Step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def compare(row: str, over_pixels: bool, batch_size: int, rounds: int) -> str:
    settings = load_config(row)
    size = batch_size, settings.data.in_chans, settings.data.img_size, settings.data.img_size
    images = torch.randint(0, 256, size, dtype=torch.uint8)
    if over_pixels:
        other = row_step(load_config(row, {"model.target": "pixels"}), images)
    else:
        other = bare_step(settings, images)
    pair = row_step(settings, images), other
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
    parser.add_argument("--over-pixels", action="store_true")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for row in chosen.rows:
        print(compare(row, chosen.over_pixels, chosen.batch_size, chosen.rounds), flush=True)


if __name__ == "__main__":
    main()

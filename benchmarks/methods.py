"""What a step of each method costs over the bare backbone, or over pixels, as a ratio measured side by side in one run.

python benchmarks/methods.py [--rows mae_vit_small spark_resnet50 …] [--over-pixels] [--batch-size 4] [--rounds 5]
python benchmarks/methods.py --rows a2mim_xcit_128 --over a2mim_xcit
python benchmarks/methods.py --rows spark_resnet50 --cfg-options model.decoder.width=768

Bare: forward, mean of the feature map, backward, on whole images. Row: the recipe as written: mask, target, encoder,
decoder, losses, backward. `--over-pixels`: the same recipe with pixels as its target, instead of the bare
backbone; `--over ROW`: another recipe, at its own image size.
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

from a2mim.data.crops import height_and_width
from a2mim.engine.assembly import build_mim
from a2mim.engine.config import load_config, parse_options
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
    encoder, floats = settings.model["encoder"], images.float() / 255
    plain = {key: value for key, value in encoder.get("model_args", {}).items() if key != "drop_path_rate"}
    bare = timm.create_model(encoder["name"], num_classes=0, **plain).train()

    def step() -> None:
        bare.forward_features(floats).mean().backward()
        bare.zero_grad()

    return step


def seconds(step: Step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def stored_images(settings: PretrainSettings, number: int) -> Tensor:
    """(number, C, H, W) uint8, random, of the recipe's size."""
    data = settings.data
    return torch.randint(0, 256, (number, data.in_chans, *height_and_width(data.img_size)), dtype=torch.uint8)


def compare(row: str, options: dict, over_pixels: bool, over: str | None, batch_size: int, rounds: int) -> str:
    settings = load_config(row, options)
    images = stored_images(settings, batch_size)
    if over:
        larger = load_config(over)
        other = row_step(larger, stored_images(larger, batch_size))
    elif over_pixels:
        other = row_step(load_config(row, options | {"model.target": "pixels"}), images)
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
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the rows")
    parser.add_argument("--over-pixels", action="store_true")
    parser.add_argument("--over", help="a recipe to compare with, instead of the bare backbone")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for row in chosen.rows:
        asked = chosen.over_pixels, chosen.over, chosen.batch_size, chosen.rounds
        print(compare(row, parse_options(chosen.cfg_options), *asked), flush=True)


if __name__ == "__main__":
    main()

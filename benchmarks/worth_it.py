"""`a2mim worth-it` on drawn sets whose answers are known: how often it is right, and whether it is ever surely wrong.

python benchmarks/worth_it.py helps cannot small --seeds 10 --out /tmp/worth

Each set has images of 32 px. A class of "helps" is a faint pattern under strong noise: hundreds of unlabelled images
show the patterns, and a few labelled ones cannot separate them from the noise. The labels of "cannot" are drawn
without a look at the images. "small" is the first set with 24 images to test on and 16 labels.

Nothing is measured here: the numbers of steps are fixed, so that an answer does not depend on the machine.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from a2mim.engine.worth import budget, cells, planning
from a2mim.engine.worth.budget import Budget, Measured, schedule_of
from a2mim.engine.worth.worth_it import worth_it

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model  # isort: skip  after a2mim, which mends torchvision
from timm.models.convnext import ConvNeXt  # isort: skip

SIZE, NETWORK = 32, "worth_convnext"  # pixels
WAVES = ((2, 0), (0, 1), (0, 2), (2, 1), (2, 2), (0, 3), (2, 3), (4, 0))  # half waves across and down, a class each
FAINT, NOISE = 0.12, 0.28  # amplitude of a pattern, deviation of the noise, of 1
KINDS = {  # right answers; unlabelled, labelled and test images; steps of pre-training
    "helps": (("helps",), 1024, 160, 200, 160),
    "cannot": (("does not help",), 64, 160, 500, 20),
    "small": (("cannot tell",), 64, 16, 24, 20),
}
FINETUNE_STEPS, BATCH, SEEDS = 20, 32, 3
SURE = ("helps", "harms", "depends", "does not help")


default_cfgs = generate_default_cfgs({NETWORK: {"input_size": (3, SIZE, SIZE)}})


@register_model
def worth_convnext(pretrained: bool = False, **arguments) -> ConvNeXt:
    """A ConvNeXt of four blocks: half the cost of the smallest that timm has."""
    small = {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)}
    return build_model_with_cfg(ConvNeXt, NETWORK, pretrained, **small | arguments)


def draw(kind: str, seed: int, folder: Path) -> tuple[Path, Path]:
    """Writes a set: (folder of unlabelled images, folder with train/ and test/, a folder a class)."""
    rng = np.random.default_rng([seed, *map(ord, kind)])
    _, unlabelled, labelled, tested, _ = KINDS[kind]
    across, down = np.meshgrid(*[np.linspace(0, 1, SIZE)] * 2)
    patterns = [np.cos(np.pi * x * across) * np.cos(np.pi * y * down) for x, y in WAVES]  # alike when mirrored
    number = itertools.count()
    for part, images in (("all", unlabelled), ("labelled/train", labelled), ("labelled/test", tested)):
        for i in range(images):
            shown = patterns[i % len(WAVES)][..., None]
            image = 0.5 + FAINT * shown + NOISE * rng.standard_normal((SIZE, SIZE, 3))
            named = rng.integers(len(WAVES)) if kind == "cannot" else i % len(WAVES)
            path = folder / part / (f"class{named}" if part != "all" else "") / f"{next(number):05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8)).save(path)
    return folder / "all", folder / "labelled"


def planned(kind: str) -> Budget:
    """The set's budget: fixed steps, no time."""
    _, unlabelled, labelled, _, steps = KINDS[kind]
    shares = {"10%": max(len(WAVES), labelled // 10), "100%": labelled}
    finetune = {share: schedule_of(images, BATCH, FINETUNE_STEPS) for share, images in shares.items()}
    return Budget(SEEDS, schedule_of(unlabelled, BATCH, steps), finetune, dict.fromkeys(budget.KINDS, 0.0))


def answer(kind: str, seed: int, folder: Path) -> dict:
    """What `worth_it` answers on a set that is drawn into the folder."""
    images, labels = draw(kind, seed, folder / "images")
    asked = {"network": NETWORK, "img_size": SIZE, "num_workers": 0, "device": "cpu", "seed": seed}
    nothing = Measured(0.0, 0.0, 0.0, 0.0, {"10%": 0.0, "100%": 0.0}, 0.0)
    with (
        mock.patch.object(planning, "measure", lambda *_: nothing),
        mock.patch.object(planning, "plan", lambda *_: planned(kind)),
        mock.patch.object(cells, "CURVE_POINTS", 1),
    ):
        return worth_it(images, labels, out=folder / "out", **asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    for kind in chosen.kinds:
        words: Counter[str] = Counter()
        for seed in range(chosen.first, chosen.first + chosen.seeds):
            found = answer(kind, seed, chosen.out / f"{kind}-{seed}")
            words[found["answer"]] += 1
            print(f"{kind}, seed {seed}: {found['answer']}: {found['sentence']}", flush=True)
        right = sum(words[word] for word in KINDS[kind][0])
        wrong = sum(count for word, count in words.items() if word in SURE and word not in KINDS[kind][0])
        print(f"{kind}: right {right} of {chosen.seeds}, surely wrong {wrong}", flush=True)


if __name__ == "__main__":
    main()

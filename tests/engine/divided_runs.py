"""Two processes that train the same runs with DDP and with FSDP, one after the other: a program for `start_two`."""

import os
import shutil
from pathlib import Path

import torch
from small_recipe import RECIPE

import a2mim
from a2mim.engine import run
from a2mim.processes import group

FSDP = {"processes.strategy": "fsdp"}
QUIET = {"log.report": False, "judge.every_epochs": None}
VIT = {
    "model.encoder.name": "vit_tiny_patch16_224",
    "model.encoder.model_args": {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8},
}
RESNET = {"model.encoder.name": "resnet18", "model.encoder.model_args": {"layers": [1, 1, 1, 1], "channels": [8] * 4}}
TEACHER = {
    "model.target": {"type": "MovingAverage", "momentum": "auto"},  # the teacher is a copy for the first 30 steps
    "model.losses": [{"type": "MaskedSmoothL1"}],
}
SPARSE = {
    "model.encoder": {"name": "test_resnet", "hide": "sparse"},
    "model.masking.mask_patch_size": 32,
    "model.decoder": {"type": "LightDecoder", "width": 32},
    "data.img_size": 64,
}
TUNING = "data = dict(img_size=32)\nglobal_batch_size = 8\noptimizer = dict(base_lr=0.05)\nexport = []\n"
OUT = Path(os.environ.get("OUT", "."))


def join() -> None:
    """Joins the group once for all runs of this program; each run would leave it."""
    run.stop_processes = run.leave_together = lambda: None
    group.start_processes("cpu")
    torch.set_num_threads(1)


def leave() -> None:
    group.leave_together()
    group.stop_processes()
    print("left", flush=True)


def train(name: str, text: str = RECIPE, command: str = "pretrain", **options) -> dict:
    """A run of the text as recipe, in the folder of that name."""
    recipe = OUT / f"{command}-{os.environ['RANK']}.py"
    recipe.write_text(text)
    start = {"data": os.environ["IMAGES"], "work_dir": OUT / name, "device": "cpu", "num_workers": 0}
    source = ("test_resnet",) if command == "finetune" else ()
    return getattr(a2mim, command)(recipe, *source, **start, **options)


def both(name: str, **options) -> list[dict]:
    """The same run with DDP, and with FSDP."""
    return [train(f"{name}-ddp", **options), train(f"{name}-fsdp", **options, **FSDP)]


def begun(old: str, new: str, steps: int) -> None:
    """A copy of a run as it stood after so many steps."""
    if group.is_first():
        shutil.copytree(OUT / old, OUT / new)
        for path in (OUT / new / "checkpoints").iterdir():
            if path.name > f"step_{steps:08d}.pth":
                path.unlink()
    group.wait_for_first()

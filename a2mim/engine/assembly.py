"""From settings to the parts of a run: loader, model, optimiser, hooks, Runner."""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.hooks import EMAHook

import a2mim
from a2mim.data import EvalLoader, ImageDataset, TrainLoader
from a2mim.engine import hooks
from a2mim.engine.optim import StepWrapper, build_optimizer, build_schedule
from a2mim.engine.runner import PretrainRunner
from a2mim.mim import MIM
from a2mim.registry import MODELS


@dataclass
class Run:
    """All that a run is made of, before its first step."""

    settings: dict  # every one, see DEFAULTS
    folder: Path | None  # None until one is claimed
    asked: dict  # config, data, test_data, laptop, as --resume needs them
    device: torch.device
    train_set: ImageDataset
    test_set: ImageDataset | None  # labelled, for the judge
    loader: TrainLoader
    model: MIM

    @property
    def max_steps(self) -> int:
        """Optimiser steps in all."""
        return self.settings["schedule"]["epochs"] * len(self.loader)

    def meta(self) -> dict:
        """Plain values that every checkpoint carries: what rebuilds the encoder."""
        pixels = {key: self.settings["data"][key] for key in ("mean", "std", "interpolation")}
        return {"encoder": self.model.encoder.arguments(), "pixels": pixels, "version": a2mim.__version__}


def build_loader(dataset, settings: dict, device: torch.device, num_workers: int | None) -> TrainLoader:
    """The training stream of this process."""
    data, batch = settings["data"], settings["global_batch_size"]
    world = int(os.environ.get("WORLD_SIZE", 1))
    pieces = world * settings["accumulate"]
    if batch % pieces:
        raise ValueError(
            f"global_batch_size={batch} is not divisible by {world} processes x accumulate={settings['accumulate']};"
            f" choose {batch // pieces * pieces or pieces} or {(batch // pieces + 1) * pieces}"
        )
    if num_workers is None:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on a Mac
        cores = usable // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        num_workers = min(8, cores) if device.type == "cuda" else 0
    if num_workers < 0:
        raise ValueError(f"--num-workers {num_workers} must be at least 0; 0 prepares the batches in the main process")
    return TrainLoader(
        dataset,
        data["img_size"],
        batch,
        scale=data["scale"],
        ratio=data["ratio"],
        hflip=data["hflip"],
        interpolation=data["interpolation"],
        transforms=data["transforms"],
        seed=settings["seed"],
        rank=int(os.environ.get("RANK", 0)),
        world_size=world,
        num_workers=num_workers,
    )


def build_mim(settings: dict) -> MIM:
    """The row of the table as a module; what follows from the data is not typed a second time in the recipe."""
    row, data = copy.deepcopy(settings["model"]), settings["data"]
    derived = {
        "type": "MaskedEncoder",
        "img_size": data["img_size"],
        "in_chans": data["in_chans"],
        "mask_patch_size": row["masking"].get("mask_patch_size", 32),
    }
    row["encoder"] = derived | row["encoder"]
    return MODELS.build({"type": "MIM", "mean": data["mean"], "std": data["std"], **row})


def build_runner(run: Run, resume_from: dict | None) -> PretrainRunner:
    """The model on its device, its optimiser and schedule, and the hooks around a step."""
    settings, model, device = run.settings, run.model, run.device
    model.to(device)
    if settings["channels_last"]:
        model.to(memory_format=torch.channels_last)
    if settings["sync_batchnorm"] and torch.distributed.is_initialized() and device.type == "cuda":
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model.encoder.model)
    if settings["compile"]:
        model.encoder.compile()
    optimizer = build_optimizer(model, settings["optimizer"], settings["global_batch_size"])
    schedule = build_schedule(optimizer, settings["schedule"], len(run.loader), run.max_steps)
    amp = choose_amp(settings["amp"], device)
    wrapper = StepWrapper(optimizer, amp, device.type, settings["accumulate"], settings["clip_grad"])
    saving, log = settings["checkpoint"], settings["log"]
    every = saving["every_steps"] or saving["every_epochs"] * len(run.loader)
    around = [
        hooks.RecordHook(settings, run.asked),
        hooks.ScheduleHook(schedule),
        hooks.LogHook(log["every_steps"]),
        hooks.PictureHook(first_images(run.test_set or run.train_set, settings), log["pictures"]),
        hooks.CheckpointHook(every, saving["keep"]),
        hooks.SignalHook(),
    ]
    if settings["ema"]:
        around.append(EMAHook(momentum=settings["ema"]))
    return PretrainRunner(run, wrapper, around, resume_from)


def choose_amp(amp: str | None, device: torch.device) -> str | None:
    """The type to compute in. For "auto": bf16 on a GPU that has it, float32 elsewhere.

    On a CPU without AVX-512, bf16 is 10 to 22 times slower than float32.
    """
    if amp == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    if amp and device.type == "cpu" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        warnings.warn(f"amp={amp!r} on this CPU, which has no AVX-512, is far slower than float32", stacklevel=2)
    return amp


def first_images(dataset, settings: dict) -> torch.Tensor:
    """(rows, C, H, W) uint8, spread evenly over the set: what the pictures show."""
    rows = min(settings["log"]["rows"], len(dataset))
    indices = [i * len(dataset) // rows for i in range(rows)]
    size = settings["data"]["img_size"]
    loader = EvalLoader(dataset, size, resize=None, batch_size=rows, indices=indices)
    return next(iter(loader))["images"]

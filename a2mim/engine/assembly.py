"""From settings to the parts of a run: loader, model, optimiser, hooks, Runner."""

from __future__ import annotations

import copy
import os
import warnings

import torch
from mmengine.hooks import EMAHook

import a2mim
from a2mim.data import EvalLoader, TrainLoader
from a2mim.engine import hooks
from a2mim.engine.optim import StepWrapper, build_optimizer, build_schedule
from a2mim.engine.runner import PretrainRunner
from a2mim.mim import MIM
from a2mim.registry import MODELS


def build_loader(dataset, settings: dict, device: torch.device, num_workers: int | None) -> TrainLoader:
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
    row = {"type": "MIM", "mean": data["mean"], "std": data["std"], **row}
    if isinstance(row.get("encoder"), dict):
        cell = row["masking"].get("mask_patch_size", 32) if isinstance(row.get("masking"), dict) else 32
        derived = {"type": "MaskedEncoder", "img_size": data["img_size"], "in_chans": data["in_chans"]}
        row["encoder"] = derived | {"mask_patch_size": cell} | row["encoder"]
    return MODELS.build(row)


def build_runner(model, loader, settings, run_dir, max_steps, device, found, pictures) -> PretrainRunner:
    model.to(device)
    if settings["channels_last"]:
        model.to(memory_format=torch.channels_last)
    if settings["sync_batchnorm"] and torch.distributed.is_initialized() and device.type == "cuda":
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model.encoder.model)
    if settings["compile"]:
        model.encoder.compile()
    optimizer = build_optimizer(model, settings["optimizer"], settings["global_batch_size"])
    schedule = build_schedule(optimizer, settings["schedule"], len(loader), max_steps)
    amp = choose_amp(settings["amp"], device)
    wrapper = StepWrapper(optimizer, amp, device.type, settings["accumulate"], settings["clip_grad"])
    saving, log = settings["checkpoint"], settings["log"]
    every = saving["every_steps"] or saving["every_epochs"] * len(loader)
    signal_hook = hooks.SignalHook()
    all_hooks = [
        hooks.ScheduleHook(schedule),
        hooks.LogHook(log["every_steps"]),
        hooks.PictureHook(pictures, log["pictures"]),
        hooks.CheckpointHook(every, saving["keep"]),
        signal_hook,
    ]
    if settings["ema"]:
        all_hooks.append(EMAHook(momentum=settings["ema"]))
    meta = {
        "encoder": model.encoder.arguments(),
        "pixels": {k: settings["data"][k] for k in ("mean", "std", "interpolation")},
        "version": a2mim.__version__,
    }
    state = found[1] if found else None
    runner = PretrainRunner(model, loader, wrapper, all_hooks, run_dir, settings, max_steps, device, meta, state)
    runner.signal_hook = signal_hook
    return runner


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

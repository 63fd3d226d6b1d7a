"""From settings to the parts of a run: loader, model, optimiser, hooks, Runner."""

from __future__ import annotations

import copy
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook

from a2mim.batchnorm import synchronise
from a2mim.checkpoints import list_checkpoints
from a2mim.data import Access, StreamLoader, TrainLoader, match_labels, open_dataset
from a2mim.data.crops import height_and_width
from a2mim.data.request import public_request
from a2mim.engine import hooks
from a2mim.engine.activations import recompute_activations
from a2mim.engine.averaging import AveragingHook
from a2mim.engine.compiling import compile_parts
from a2mim.engine.finetune_settings import FinetuneData
from a2mim.engine.fsdp import divide_model, is_divided
from a2mim.engine.health_hook import HealthHook
from a2mim.engine.optim import StepWrapper, build_schedule
from a2mim.engine.pretrain_settings import PretrainData, PretrainSettings
from a2mim.engine.records import Request, ResumePoint, StepContext
from a2mim.engine.refine_settings import RefineData
from a2mim.engine.report_hook import ReportHook
from a2mim.engine.runner import TrainRunner
from a2mim.engine.saving import Writer
from a2mim.engine.task import RecipeSettings, Task
from a2mim.mim import MIM
from a2mim.registry import MODELS


@dataclass
class Run:
    """All that a run is made of, before its first step."""

    settings: RecipeSettings
    folder: Path | None  # None until one is claimed
    request: Request
    device: torch.device
    loader: TrainLoader
    task: Task
    num_workers: int = 0
    changes: list[dict] = field(default_factory=list)  # what each resume changed: its step and sentences
    origins: dict[str, str] = field(default_factory=dict)  # dotted setting -> where it comes from
    notes: list[str] = field(default_factory=list)  # sentences for the log, about what was chosen at the start

    def __post_init__(self) -> None:
        self.writer = Writer(self.settings.checkpoint.background)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.claimed / "checkpoints"

    @property
    def claimed(self) -> Path:
        """The run's folder, once it is claimed."""
        assert self.folder is not None
        return self.folder

    @property
    def meta(self) -> dict:
        """Plain values that every checkpoint carries beside the weights."""
        settings, request = self.settings.model_dump(mode="json"), public_request(self.request.given())
        data = {"test_fingerprint": self.task.test_set and self.task.test_set.fingerprint}
        return {**self.task.meta(), **data, "settings": json.dumps(settings), "request": json.dumps(request)}

    def last_good(self) -> str:
        """Where the weights were last saved, as part of a sentence."""
        self.writer.finish()
        saved = list_checkpoints(self.checkpoints)
        return f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"

    @property
    def max_steps(self) -> int:
        """Optimiser steps in all."""
        return self.loader.position_of(self.settings.schedule.epochs)


def open_sets(data, test_data, settings: PretrainData | FinetuneData | RefineData, access: Access):
    """(training set, test set or None): the test set is the one named, else the source's own test split, if any.

    access: how data are reached.
    """
    source = "photos" if data is None else data
    reading = settings.model_dump(include={"in_chans", "bits", "exif", "value_range", "nodata", "fill"}) | {
        "access": access
    }
    train = open_dataset(source, "train", **reading)
    reading["bits"] = train.pixel_format.bits  # both sets alike
    if test_data is not None:
        return train, match_labels(train, open_dataset(test_data, "test", **reading))
    if "test" in train.splits:
        test = open_dataset(source, "test", **reading)
        if (train.labels >= 0).any() and (test.labels >= 0).any():
            return train, match_labels(train, test)
    return train, None


def build_loader(
    dataset, settings: RecipeSettings, device: torch.device, num_workers: int, augmentation: dict | None = None
) -> TrainLoader:
    """The training stream of this process. augmentation: what TrainLoader takes beyond the crop."""
    data, batch = settings.data, settings.global_batch_size
    world = int(os.environ.get("WORLD_SIZE", 1))
    micro_batches = world * settings.micro_batches
    if batch % micro_batches:
        raise ValueError(
            f"global_batch_size={batch} is not divisible by {world} processes x accumulate={settings.micro_batches};"
            f" choose {batch // micro_batches * micro_batches or micro_batches} or"
            f" {(batch // micro_batches + 1) * micro_batches}"
        )
    return (StreamLoader if dataset.stream else TrainLoader)(
        dataset,
        data.img_size,
        batch,
        **crop_of(data),
        seed=settings.seed,
        rank=int(os.environ.get("RANK", 0)),
        world_size=world,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        **(augmentation or {}),
    )


def crop_of(data: PretrainData | FinetuneData | RefineData) -> dict:
    """What TrainLoader takes of the recipe's random crops, beside their size."""
    keys = ("scale", "hflip", "interpolation", "transforms")
    return {"ratio": ratio_of(data), **{key: getattr(data, key) for key in keys}}


def ratio_of(data: PretrainData | FinetuneData | RefineData) -> tuple[float, float]:
    """Least and greatest width / height of a crop: the recipe's, times that of the image that the crop becomes."""
    assert data.img_size is not None  # `complete_pixels` filled it in
    height, width = height_and_width(data.img_size)
    return data.ratio[0] * width / height, data.ratio[1] * width / height


def build_mim(settings: PretrainSettings) -> MIM:
    """The row of the table as a module; what follows from the data is not typed a second time in the recipe."""
    row, data = copy.deepcopy(settings.model), settings.data
    row["masking"] = MODELS.build(row["masking"])
    derived = {
        "type": "MaskedEncoder",
        "img_size": data.img_size,
        "in_chans": data.in_chans,
        "mask_patch_size": getattr(row["masking"], "mask_patch_size", 32),
    }
    row["encoder"] = derived | row["encoder"]
    return MODELS.build({"type": "MIM", "mean": data.mean, "std": data.std, **row})


def build_runner(run: Run, resume_from: ResumePoint | None) -> TrainRunner:
    """The model on its device, its optimiser and schedule, and the hooks around a step."""
    settings, task, device = run.settings, run.task, run.device
    rank, world_size = get_dist_info()
    divided = is_divided(settings, world_size)
    if not divided:
        task.model.to(device)
    if settings.sync_batchnorm and torch.distributed.is_initialized() and device.type == "cuda":
        synchronise_norms(task)
    prepare_model(task, settings)
    compile_parts(task, settings)
    division = divide_model(task.model, settings, device) if divided else None
    optimizer = task.optimizer()
    steps = len(run.loader)
    schedule = build_schedule(optimizer, settings.schedule, steps, settings.schedule.epochs * steps)
    amp = choose_amp(settings.amp, device)
    wrapper = StepWrapper(optimizer, amp, device.type, settings.micro_batches, settings.clip_grad)
    named: dict[str, Hook] = {
        "record": hooks.RecordHook(settings, run.request),
        "schedule": hooks.ScheduleHook(schedule),
        "log": hooks.LogHook(settings.log.every_steps),
        "health": HealthHook(),
        **task.hooks(),
        **({"report": ReportHook()} if settings.log.report else {}),
        "checkpoint": hooks.CheckpointHook(settings.checkpoint),
        "signals": hooks.SignalHook(),
    }
    if settings.ema:
        named["ema"] = AveragingHook(settings.ema)
    context = StepContext(
        device,
        settings.seed,
        rank,
        world_size,
        accumulate=settings.micro_batches,
        memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format,
    )
    return TrainRunner(run, context, wrapper, named, resume_from, division)


def synchronise_norms(task: Task) -> None:
    """Every BatchNorm takes its statistics over all processes: the network's, and in pre-training also the decoder's.

    Refinement's heads see the views of all processes anyway.
    """
    synchronise(task.model if isinstance(task.model, MIM) else task.network)


def prepare_model(task: Task, settings: RecipeSettings) -> None:
    """Sets the memory format, and what is recomputed, on a model that is on its device."""
    if settings.channels_last:
        task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares it with a device alone
    if settings.activation_checkpointing:
        recompute_activations(task.network)


def choose_amp(amp: str | None, device: torch.device) -> str | None:
    """The type to compute in. For "auto": bf16 on a GPU that computes in it, float32 elsewhere.

    On a CPU without AVX-512, bf16 is 10 to 22 times slower than float32.
    """
    if amp == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else None
    if amp and device.type == "cpu" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        warnings.warn(f"amp={amp!r} on this CPU, which has no AVX-512, is far slower than float32", stacklevel=2)
    return amp

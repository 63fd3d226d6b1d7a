"""Plain records that never change: the request of a run, the point it resumes from, and the facts of a step."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch

from a2mim.data import Access, ImageDataset
from a2mim.processes.group import restarted


@dataclass(frozen=True)
class Request:
    """What the user asked for. `--resume` recalls it, summary.json shows it.

    Args:
        config: the recipe, as it was named.
        data, test_data: sources by name, or data sets given from Python; None: the built-in photographs, or none.
        laptop: whether the recipe runs at laptop scale; None: exactly when there is no data.
        source: of fine-tuning: the encoder.
    """

    config: str
    data: Any = None
    test_data: Any = None
    laptop: bool | None = None
    source: str | None = None

    @classmethod
    def of(cls, config: object, data: Any, test_data: Any, laptop: bool | None, source: object = None) -> Self:
        """The request with every path as a string; a recipe that is a dictionary is named after its network."""
        return cls(name_of(config), _plain(data), _plain(test_data), laptop, None if source is None else str(source))

    @property
    def name(self) -> str:
        """The recipe's name: runs/<name> is where its runs lie."""
        return Path(self.config).stem

    def filled_from(self, recalled: dict) -> Self:
        """The request, with open values filled in from an earlier one, as stored by `a2mim.data.request`."""
        known = {each.name for each in fields(self)}
        open_ones = {k: v for k, v in recalled.items() if k in known and getattr(self, k) is None}
        return replace(self, **open_ones)

    def given(self) -> dict:
        """The requested values by name; "source" is left out if it is None."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {key: value for key, value in given.items() if key != "source" or value is not None}


def name_of(config: object) -> str:
    """How a recipe is named: as the user named it; a dictionary, which has no name, by its network or protocol."""
    if not isinstance(config, Mapping):
        return str(config)
    model = config.get("model")
    encoder = model.get("encoder") if isinstance(model, Mapping) else None
    name = encoder.get("name") if isinstance(encoder, Mapping) else config.get("protocol")
    return re.sub(r"[^\w-]+", "_", str(name)).strip("_") or "recipe" if name else "recipe"


def _plain(source: Any) -> Any:
    """Paths as strings; a data set that is given as an object stays one."""
    if isinstance(source, list | tuple):
        return [str(part) for part in source]
    return str(source) if isinstance(source, PathLike) else source


@dataclass(frozen=True)
class Launch:
    """How a run is started; none of it is recalled by `--resume`. See `a2mim.pretrain` for each."""

    work_dir: str | PathLike | None = None
    resume: bool | str = False  # "auto": resume if there is a run to resume
    next_epoch: bool = False
    num_workers: int | None = None
    device: str | None = None
    access: Access | None = None
    overrides: dict = field(default_factory=dict)
    recipe: Mapping | None = None  # settings that were given as a dictionary; None: the recipe is a file

    def recipe_of(self, request: Request) -> Any:
        """What `load_config` takes: the settings themselves, or the recipe's path or name."""
        return request.config if self.recipe is None else self.recipe

    @property
    def goes_on(self) -> bool:
        """Whether to look for an earlier run. torchrun gives restarted processes their first command line again."""
        return bool(self.resume) or restarted()

    @property
    def may_start(self) -> bool:
        """Whether a run begins where none is found."""
        return self.resume == "auto" or restarted()


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that a run goes on from.

    Args:
        path: of its file.
        checkpoint: what the file holds, see `a2mim.engine.state.state_of`.
    """

    path: Path
    checkpoint: dict

    @property
    def meta(self) -> dict:
        """What the task wrote beside the weights."""
        return self.checkpoint["meta"]

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        return int(self.meta["step"])


@dataclass(frozen=True)
class TaskData:
    """What a task has opened before its model is built: enough to make the loader, and to refuse what does not fit.

    Args:
        settings: of the recipe, completed by what the data and the source say.
        train_set, test_set: images to train on, and to judge on.
        augmentation: what TrainLoader takes beyond the crop.
    """

    settings: Any
    train_set: ImageDataset
    test_set: ImageDataset | None
    augmentation: dict = field(default_factory=dict)


@dataclass(frozen=True)
class StepContext:
    """What a task and its hooks need to know of the process that takes a step.

    Args:
        device: of the model.
        seed: of the run.
        rank, world_size: this process, and how many there are.
        accumulate: micro-batches of a step on this process.
        memory_format: of images on the device.
    """

    device: torch.device
    seed: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    memory_format: torch.memory_format = torch.contiguous_format

    def to_device(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) as stored, on the device and in the recipe's memory format."""
        return images.to(self.device, non_blocking=True, memory_format=self.memory_format)

    def step_seed(self, step: int, purpose: str) -> int:
        """The seed of one step of this process, for one purpose."""
        return step_seed(self.seed, step, self.rank, purpose)


def step_seed(seed: int, step: int, rank: int, purpose: str) -> int:
    """63 bits, a pure function of its arguments."""
    text = f"{seed}/{step}/{rank}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1

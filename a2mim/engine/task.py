"""What a run does with its batches; loop, checkpoints, log, folder and signals are the same for every task.

`Pretraining`, `Finetuning` and `Refining` are the three. None inherits anything: here stands what the engine asks of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from mmengine.hooks import Hook
from torch import nn

from a2mim.data import Access, ImageDataset
from a2mim.engine.finetune_settings import FinetuneSettings
from a2mim.engine.pretrain_settings import PretrainSettings
from a2mim.engine.records import Request, StepContext, TaskData
from a2mim.engine.refine_settings import RefineSettings
from a2mim.engine.setting_groups import Settings
from a2mim.processes.leading import Share

RecipeSettings: TypeAlias = PretrainSettings | FinetuneSettings | RefineSettings


class Task(Protocol):
    """Made from (data, request, device, saved): builds the model, from torch's seeded generator, and writes nothing.

    `data` is what `open` returned; `saved` is the `meta` of the checkpoint that the run goes on from, or None.
    """

    command: str  # of the command line, with which a stopped run goes on
    train_set: ImageDataset
    test_set: ImageDataset | None

    @property
    def model(self) -> nn.Module:
        """`train_step(**micro_batch)` gives named losses."""

    @property
    def network(self) -> nn.Module:
        """The part of the model that is compiled."""

    @property
    def settings_class(self) -> type[Settings]:
        """The settings of its recipes."""

    @property
    def settings(self) -> RecipeSettings:
        """Of the recipe, completed by what data and source say."""

    @staticmethod
    def open(settings: Any, request: Request, saved: dict | None = None, access: Access | None = None) -> TaskData:
        """Opens the data and completes the settings, before anything is built. access: how data are reached."""

    def optimizer(self) -> torch.optim.Optimizer:
        """Of the model's trainable parameters."""

    def hooks(self) -> dict[str, Hook]:
        """Name -> what happens around a step of this task alone."""

    def micro_batches(self, context: StepContext, batch: dict, step: int, epoch: int) -> Iterator[dict]:
        """The arguments of the model in a step's `accumulate` passes, a function of the batch and the step alone."""

    def measure(self, context: StepContext, batch: dict, step: int) -> Mapping[str, torch.Tensor | float]:
        """Further numbers for a line of the log, best 0-d on the device, of the step just taken on `batch`; they are
        averaged over the processes.
        """

    def derive(self, values: dict[str, float]) -> dict[str, float]:
        """Numbers for a line of the log that follow from its averaged ones."""

    def caption(self, line: dict) -> str:
        """What the progress bar says beside the loss; `line` is the log's last."""

    def meta(self) -> dict:
        """Plain values that every checkpoint carries."""

    def opening(self) -> list[str]:
        """What the first lines on the screen say of the model."""

    def facts(self, last: dict) -> dict:
        """What summary.json says of the model, and under "loss" what the loss is to be compared with."""

    def helpers(self, averaged: nn.Module) -> dict[str, Callable[..., Share]]:
        """What the other processes compute while the first one hands over; see `a2mim.processes.leading.lead`."""

    def hand_over(self, averaged: nn.Module, folder: Path) -> dict:
        """What is done on the first process when the last step has been taken, for summary.json."""

    def closing(self, summary: dict, folder: Path) -> list[str]:
        """The last lines on the screen."""

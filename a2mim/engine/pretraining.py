"""Pre-training as a task of the engine: masks, one colour as the rival to beat, pictures; an encoder comes out."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor

import a2mim
from a2mim.batchnorm import unsynchronise
from a2mim.data import Access, EvalLoader
from a2mim.engine import judging
from a2mim.engine.activations import keep_activations
from a2mim.engine.assembly import build_mim, open_sets
from a2mim.engine.collapse import CollapseHook, Deviations, follows_the_encoder
from a2mim.engine.further_exports import check_further, further_lines, write_further
from a2mim.engine.health_hook import PretrainHealthHook, fixed_images
from a2mim.engine.hooks import PartsHook, PictureHook
from a2mim.engine.online import online_knn
from a2mim.engine.optim import build_optimizer
from a2mim.engine.portrait import draw_portrait
from a2mim.engine.pretrain_settings import PretrainSettings
from a2mim.engine.records import Request, StepContext, TaskData
from a2mim.engine.report import judging_lines, sentence, timm_lines
from a2mim.engine.resized import at_judged_size, check_judged_size
from a2mim.export import export_timm_folder
from a2mim.pixels import Preprocessing
from a2mim.processes.leading import Share
from a2mim.targets import Pixels
from a2mim.text import size_in_words
from a2mim.weights.loading import describe_report, initialise


class Pretraining:
    """See `a2mim.engine.task.Task`."""

    command = "pretrain"
    settings_class = PretrainSettings

    def __init__(self, data: TaskData, request: Request, device: torch.device, saved: dict | None = None):
        self.settings, self.device = data.settings, device
        self.train_set, self.test_set = data.train_set, data.test_set
        check_judged_size(self.settings)
        self.model = build_mim(self.settings)
        self.network = self.model.encoder
        check_further(self.model.encoder, self.settings)
        self.deviations = Deviations(self.model)
        self.start = self._initialise(saved)
        self.model.attach_target()  # a teacher that follows the student starts from the weights just loaded
        self.untrained = copy.deepcopy(self.model.encoder)  # judged at the end, so that training starts at once
        self.online = online_knn(self.settings, self.train_set, self.test_set)

    @staticmethod
    def open(
        settings: PretrainSettings, request: Request, saved: dict | None = None, access: Access | None = None
    ) -> TaskData:
        """Opens the data; see `a2mim.engine.task.Task`."""
        return TaskData(settings, *open_sets(request.data, request.test_data, settings.data, access or Access()))

    def _initialise(self, saved: dict | None) -> dict | None:
        """Loads the weights to start from, if any, and returns the report; a run that goes on can do without them."""
        encoder, source = self.model.encoder, self.settings.init_from
        if source is None:
            return None
        try:
            report = initialise(encoder.model, encoder.model_args, source, self.settings.allow_partial)
            return report.as_dict()
        except (OSError, ValueError) as error:
            if saved is None:
                raise
            warnings.warn(f"what this run started from is judged as a random network: {error}", stacklevel=2)
            return saved.get("start")

    def optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.settings.optimizer, self.settings.global_batch_size)

    def hooks(self) -> dict[str, Hook]:
        settings = self.settings
        images = first_images(self.test_set or self.train_set, settings)
        pictures = PictureHook(images, settings.log.pictures, settings.log.bands)
        hooks: dict[str, Hook] = {"parts": PartsHook(), "pictures": pictures}
        sets = self.train_set, self.test_set
        hooks["health"] = PretrainHealthHook(
            self._advice(), lambda: fixed_images(*sets, settings.data.img_size, settings.seed)
        )
        if follows_the_encoder(self.model):
            hooks["collapse"] = CollapseHook()
        if self.online:
            hooks["online"] = self.online
        return hooks

    def _advice(self) -> str:
        """Settings of the recipe to check if nothing is learnt."""
        settings, sites = self.settings, self.model.encoder.site
        ratio = settings.model["masking"].get("mask_ratio", "the default")
        rate = f"the learning rate (optimizer.base_lr={settings.optimizer.base_lr:g})"
        return f"{rate}, then at the mask ratio ({ratio}), then at the site of the mask token ({sites})"

    def micro_batches(self, context: StepContext, batch: dict, step: int, epoch: int) -> Iterator[dict]:
        """Images and their masks, and the generator of this step's masks on this process.

        A compiled step gets no generator, and no number of hidden cells unless the network needs it: each new value
        would make a new graph.
        """
        compiled = self.settings.compile == "step"
        counted = not compiled or getattr(self.model.encoder, "hide", "token") != "token"
        generator = torch.Generator(self.model.mask_device(context.device))
        generator.manual_seed(context.step_seed(step, "mask"))
        self.deviations.clear()
        for part in batch["images"].chunk(context.accumulate):
            images = context.to_device(part)
            mask, hidden_cells = self.model.draw(images, generator)
            yield {
                "images": images,
                "mask": mask,
                "hidden_cells": hidden_cells if counted else None,
                "generator": None if compiled else generator,
            }

    @torch.no_grad()
    def measure(self, context: StepContext, batch: dict, step: int) -> dict[str, Tensor]:
        """The losses of the step just taken, had every image been answered by its mean or by its median colour; and how
        much features differ, see `Deviations`.
        """
        deviations = self.deviations.values()
        parts = [self.model.baselines(**part) for part in self.micro_batches(context, batch, step, epoch=0)]
        colours = {f"{name}_colour": torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        return colours | deviations

    def derive(self, values: dict[str, float]) -> dict[str, float]:
        """The better of the two colours: what a network that has learned anything is below."""
        return {"baseline": min(values["mean_colour"], values["median_colour"])}

    def caption(self, line: dict) -> str:
        return f"({self.rival(line)} {line['baseline']:.4f})"

    def rival(self, line: dict) -> str:
        """The better of the two answers that take no learning; lines of older versions know the mean alone."""
        best = "median" if line.get("median_colour", math.inf) < line.get("mean_colour", math.inf) else "mean"
        return f"{best} colour" if isinstance(self.model.target, Pixels) else f"target's {best}"

    def meta(self) -> dict:
        """What rebuilds the encoder."""
        pixels = self.settings.data.model_dump(include={"mean", "std", "interpolation"})
        encoder = self.model.encoder.arguments()
        return {"encoder": encoder, "pixels": pixels, "version": a2mim.__version__, "start": self.start}

    def opening(self) -> list[str]:
        encoder, size = self.model.encoder, self.settings.data.img_size
        frozen = sum(encoder.model.get_parameter(name).numel() for name in encoder.frozen)
        total = sum(p.numel() for p in encoder.model.parameters())
        sites = [encoder.site] if isinstance(encoder.site, str) else encoder.site
        hidden = {
            "token": "no mask token" if not encoder.sites else f"mask token at {' and '.join(map(repr, sites))}",
            "drop": "hidden patches left out",
            "sparse": "hidden cells held at 0",
        }[encoder.hide]
        lines = [f"  encoder  {encoder.name} at {size_in_words(size)} px, {total / 1e6:.2f} M parameters, {hidden}"]
        if self.start:
            lines.append(f"  start    {describe_report(self.start)}")
        if hasattr(self.model.target, "describe"):
            lines.append(f"  teacher  {self.model.target.describe()}")
        if frozen:
            share = f"{frozen / total:.1%} of the parameters ({len(encoder.frozen)} tensors)"
            lines.append(f"  frozen   {share}: no loss on the feature map reaches them; names in summary.json")
        return lines

    def facts(self, last: dict) -> dict:
        loss = {key: last.get(key) for key in ("mean_colour", "median_colour", "baseline")}
        loss["baseline_name"] = f"each image's {self.rival(last)}"
        facts = {"encoder": self.model.encoder.arguments(), "start": self.start, "loss": loss}
        return facts | ({"online_knn": self.online.facts()} if self.online else {})

    def helpers(self, averaged: Any) -> dict[str, Callable[..., Share]]:
        """See `a2mim.engine.task.Task`."""
        judge = judging.Judge(self.settings, self.train_set, self.test_set, self.device)
        encoders = {"before": self.untrained, "after": averaged.encoder}
        return judge.helpers({when: at_judged_size(each, self.settings) for when, each in encoders.items()})

    def hand_over(self, averaged: Any, folder: Path) -> dict:
        """Exports the encoder, then judges it beside the untrained one; what is to be said of both."""
        data = self.settings.data
        trained: Any = unsynchronise(averaged.encoder)
        keep_activations(trained)
        trained, untrained = (at_judged_size(encoder, self.settings) for encoder in (trained, self.untrained))
        trained.to(self.device)
        judge = judging.Judge(self.settings, self.train_set, self.test_set, self.device)
        receipt = None
        if self.settings.export:
            preprocessing = Preprocessing(data.mean, data.std, trained.img_size, data.interpolation)
            receipt = export_timm_folder(
                trained.model,
                trained.arguments(),
                preprocessing,
                folder / "encoder",
                batches=judge.calibration_batches(),
                source=str(folder),
            )
            judge.keep_calibrated(trained)
        before, after = judge(untrained, "before"), judge(trained, "after")
        judging.write_results(judge, after, trained, folder)
        if self.settings.log.report:
            encoders = {"before": judge.calibrated(untrained), "after": judge.calibrated(trained)}
            draw_portrait(judge, encoders, averaged, folder)
        judged = judging.compare(before, after)
        further = write_further(trained, self.settings, receipt, folder) if receipt else []
        return {"export": receipt, "judged": judged, **({"exports": further} if further else {})}

    def closing(self, summary: dict, folder: Path) -> list[str]:
        loss = summary["loss"]
        lines = []
        if loss["first"] is not None:
            baseline, name = loss["baseline"], loss["baseline_name"]
            rival = f"always answering {name}: {baseline:.4f}"
            lines.append(f"  loss     {loss['first']:.4f} -> {loss['last']:.4f} ({rival})")
            if not loss["last"] < baseline:
                lines.append(
                    f"  warning  the last loss is not below that of always answering {name}: nothing was learned yet;"
                    " train longer, or look at the learning rate and at the pictures"
                )
        pictures = sorted((folder / "reconstructions").glob("*.png"))
        lines += judged_lines(summary["judged"])
        lines += [f"  picture  {pictures[-1]}", f"  summary  {folder / 'summary.json'}"]
        if not summary["export"]:
            return lines
        encoder, own = folder / "encoder", summary["export"]["target"] == "network"
        source = f"{summary['encoder']['name']}:{folder}" if own else str(folder)  # code is named by the user alone
        return [
            *lines,
            f"  encoder  {encoder}",
            *further_lines(summary),
            "next:",
            *([f"  how to load it stands in {encoder / 'README.md'}"] if own else timm_lines(encoder, classes=0)),
            *judging_lines(summary, source, ["linear-probe", "knn"]),
        ]


def judged_lines(judged: dict | None) -> list[str]:
    """Before and after, and what may honestly be said of the difference."""
    if judged is None:
        return ["  judged   not at all: there are no labelled test images (--test-data, or test/ beside train/)"]
    return [
        f"  before   {sentence(judged['before'])}",
        f"  after    {sentence(judged['after'])}",
        *(f"  {verdict}" for verdict in judged["verdicts"]),
        "  Both networks frozen and calibrated alike, one seed. Masked pre-training shows in a linear probe before it",
        "  shows in k-NN, its weakest judge; a few minutes on small data say that it learns, not how good it gets.",
    ]


def first_images(dataset, settings: PretrainSettings) -> torch.Tensor:
    """(rows, C, H, W) uint8 or uint16, spread evenly over the set: what the pictures show."""
    rows = min(settings.log.rows, len(dataset))
    indices = [i * len(dataset) // rows for i in range(rows)]
    size = settings.data.img_size
    loader = EvalLoader(dataset, size, resize=None, batch_size=rows, indices=indices)
    return next(iter(loader))["images"]

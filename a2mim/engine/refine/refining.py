"""Refinement as a task of the engine: contrastive heads on the last maps of a pre-trained encoder."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook

import a2mim
from a2mim.batchnorm import unsynchronise
from a2mim.data import Access
from a2mim.engine import judging
from a2mim.engine.activations import keep_activations
from a2mim.engine.hooks import PartsHook
from a2mim.engine.labelled_data import PIXELS
from a2mim.engine.online import online_knn
from a2mim.engine.optim import build_refining_optimizer
from a2mim.engine.portrait import draw_portrait
from a2mim.engine.records import Request, StepContext
from a2mim.engine.refine import Head, Refiner
from a2mim.engine.refine.refine_data import RefineSets, open_refined
from a2mim.engine.refine.refine_encoder import build_encoder, rebuild_encoder
from a2mim.engine.refine.refiner import VIEWS, map_names
from a2mim.engine.refine_settings import RefineSettings
from a2mim.engine.report import judging_lines, sentence, timm_lines
from a2mim.export import export_timm_folder
from a2mim.pixels import Preprocessing
from a2mim.processes.leading import Share
from a2mim.text import size_in_words
from a2mim.weights.loading import describe_report, read_source


class Refining:
    """See `a2mim.engine.task.Task`.

    A resumed run takes the architecture from its checkpoint and needs its source only for the judgement before.
    """

    command = "refine"
    settings_class = RefineSettings

    @staticmethod
    def open(
        settings: RefineSettings, request: Request, saved: dict | None = None, access: Access | None = None
    ) -> RefineSets:
        """See `open_refined`."""
        return open_refined(settings, request, saved, access)

    def __init__(self, data: RefineSets, request: Request, device: torch.device, saved: dict | None = None):
        self.request, self.settings, self.device = request, data.settings, device
        self.train_set, self.test_set = data.train_set, data.test_set
        settings, images = data.settings, data.settings.data
        if data.source is None:
            assert saved is not None
            encoder, self.start = rebuild_encoder(saved, request.source), saved.get("start")
        else:
            encoder, self.start = build_encoder(data.source, str(request.source), settings)
        self.queue, self.k = data.queue, data.k
        chosen = settings.heads
        sizes = chosen.hidden, chosen.predicted, chosen.width, chosen.momentum
        heads = [Head(width, data.queue, *sizes) for width in encoder.channels]
        assert images.mean is not None and images.std is not None  # `complete_pixels` filled them in
        self.model = Refiner(encoder, heads, settings.frozen, images.mean, images.std, chosen.temperature)
        self.network = encoder
        self.untrained = self._before(saved)
        self.online = online_knn(settings, self.train_set, self.test_set)

    def _before(self, saved: dict | None) -> Any:
        """The encoder that this run started from, to be judged at the end; None where its source is gone."""
        if saved is None:
            return copy.deepcopy(self.model.encoder)
        try:
            source = read_source(str(self.request.source))
            return build_encoder(source, str(self.request.source), self.settings)[0]
        except (OSError, ValueError) as error:
            warnings.warn(f"the encoder that this run started from cannot be judged: {error}", stacklevel=2)
            return None

    def optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        return build_refining_optimizer(
            self.model, settings.optimizer, settings.heads.weight_decay, settings.global_batch_size
        )

    def hooks(self) -> dict[str, Hook]:
        heads = self.settings.heads
        hooks: dict[str, Hook] = {
            "parts": PartsHook(),
            "encoder": EncoderRateHook(heads.alone_epochs, self.settings.schedule.warmup_epochs),
        }
        if self.online:
            hooks["online"] = self.online
        return hooks

    def micro_batches(self, context: StepContext, batch: dict, step: int, epoch: int) -> Iterator[dict]:
        """Pairs of views, their samples, and the generator that chooses among neighbours."""
        generator = torch.Generator(context.device).manual_seed(context.step_seed(step, "neighbours"))
        alone = epoch < self.settings.heads.alone_epochs
        images, ids = pairs_of(batch, None if self.train_set.stream else len(self.train_set))
        for views, samples in zip(images.chunk(context.accumulate), ids.chunk(context.accumulate), strict=True):
            yield {
                "images": context.to_device(views.flatten(0, 1)).unflatten(0, (-1, VIEWS)),
                "ids": samples.to(context.device),
                "k": 1 if alone else self.k,
                "heads_only": alone,
                "generator": generator,
            }

    def measure(self, context: StepContext, batch: dict, step: int) -> dict[str, float]:
        """The loss of answering with every image of the batch alike."""
        images = len(batch["images"]) // VIEWS // context.accumulate * context.world_size
        return {"baseline": len(self.model.heads) * math.log(max(1, images))}

    def derive(self, values: dict[str, float]) -> dict[str, float]:
        return {}

    def caption(self, line: dict) -> str:
        return f"(chance {line['baseline']:.4f})"

    def meta(self) -> dict:
        """What rebuilds the encoder, and the sizes of the heads."""
        encoder = self.model.encoder
        return {
            "encoder": encoder.arguments(),
            "maps": map_names(encoder),
            "sizes": [self.queue, self.k],
            "pixels": self.settings.data.model_dump(include=PIXELS),
            "version": a2mim.__version__,
            "start": self.start,
        }

    def opening(self) -> list[str]:
        encoder, heads = self.model.encoder, self.settings.heads
        total = sum(p.numel() for p in encoder.model.parameters())
        kept = sum(encoder.model.get_parameter(name).numel() for name in self.model.kept)
        maps = ", ".join(map_names(encoder)) or "the final map"
        number = heads.alone_epochs
        alone = f"; they train alone for {number} epoch{'s'[: number > 1]}" if number else ""
        return [
            f"  source   {self.request.source}",
            *([f"  start    {describe_report(self.start)}"] if self.start else []),
            f"  encoder  {encoder.name} at {size_in_words(encoder.img_size)} px, {total / 1e6:.2f} M parameters, the"
            f" first {kept / total:.0%} of them stay as they are",
            f"  heads    {len(self.model.heads)}, on {maps}{alone}",
            f"  queue    {self.queue} images, one of the {self.k} nearest is the neighbour",
        ]

    def facts(self, last: dict) -> dict:
        loss = {"baseline": last.get("baseline"), "baseline_name": "taking every image of the batch for alike"}
        facts = {"encoder": self.model.encoder.arguments(), "start": self.start, "loss": loss}
        facts["heads"] = {"maps": map_names(self.model.encoder), "queue": self.queue, "k": self.k}
        return facts | ({"online_knn": self.online.facts()} if self.online else {})

    def helpers(self, averaged: Any) -> dict[str, Callable[..., Share]]:
        """See `a2mim.engine.task.Task`."""
        judge = judging.Judge(self.settings, self.train_set, self.test_set, self.device)
        return judge.helpers({"before": self.untrained, "after": averaged.encoder})

    def hand_over(self, averaged: Any, folder: Path) -> dict:
        """Exports the encoder, then judges it beside the one that it started from and beside colours alone."""
        data = self.settings.data
        trained: Any = unsynchronise(averaged.encoder)
        keep_activations(trained)
        judge = judging.Judge(self.settings, self.train_set, self.test_set, self.device)
        receipt = None
        if self.settings.export:
            receipt = export_timm_folder(
                trained.model,
                trained.arguments(),
                Preprocessing(data.mean, data.std, trained.img_size, data.interpolation),
                folder / "encoder",
                batches=judge.calibration_batches(),
                source=str(folder),
            )
        before = None if self.untrained is None else judge(self.untrained, "before")
        after = judge(trained, "after")
        judging.write_results(judge, after, trained, folder)
        if self.untrained is not None and self.settings.log.report:
            encoders = {"before": judge.calibrated(self.untrained), "after": judge.calibrated(trained)}
            draw_portrait(judge, encoders, None, folder)
        judged = judging.compare(before, after)
        if judged is not None:
            judged["colours"] = judge.colours()
        return {"export": receipt, "judged": judged}

    def closing(self, summary: dict, folder: Path) -> list[str]:
        loss, judged = summary["loss"], summary["judged"]
        lines = [] if loss["first"] is None else [f"  loss     {loss['first']:.4f} -> {loss['last']:.4f}"]
        lines += judged_lines(judged, (summary.get("online_knn") or {}).get("history") or [])
        lines.append(f"  summary  {folder / 'summary.json'}")
        if not summary["export"]:
            return lines
        encoder, own = folder / "encoder", summary["export"]["target"] == "network"
        source = f"{summary['encoder']['name']}:{folder}" if own else str(folder)
        return [
            *lines,
            f"  encoder  {encoder}",
            "next:",
            *([f"  how to load it stands in {encoder / 'README.md'}"] if own else timm_lines(encoder, classes=0)),
            *judging_lines(summary, source, ["knn"]),
        ]


class EncoderRateHook(Hook):
    """Holds the encoder's learning rate at 0 while the heads train alone, then raises it linearly to the schedule's.

    Args:
        alone: epochs of the heads alone. rise: epochs in which the rate rises.
    """

    def __init__(self, alone: float, rise: float):
        self.alone, self.rise = alone, rise

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        since = runner.run.loader.epochs_done(runner.iter) - self.alone
        share = (
            0.0
            if since < 0
            else 1.0
            if since >= self.rise
            else (since * len(runner.run.loader) + 1) / (self.rise * len(runner.run.loader) + 1)
        )
        for group in runner.optim_wrapper.optimizer.param_groups:
            if group["part"] == "encoder":
                group["lr"] *= share


def pairs_of(batch: dict, number: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(images (N, 2, C, H, W), samples (N,)) of a batch whose views are side by side.

    Args:
        number: images of the set, over which the ids of copies begin again; None where ids are those of images.

    A view of another image stands where its own could not be read; the other view then stands twice.
    """
    images = batch["images"].unflatten(0, (-1, VIEWS))
    ids = batch["ids"] if number is None else batch["ids"] % number
    ids = ids.unflatten(0, (-1, VIEWS))
    strange = ids[:, 0] != ids[:, 1]
    if strange.any():  # torch cannot assign to chosen rows of uint16
        first, second = images.unbind(1)
        images = torch.stack([first, torch.where(strange.view(-1, 1, 1, 1), first, second)], dim=1)
    return images, ids[:, 0]


def judged_lines(judged: dict | None, history: list[dict]) -> list[str]:
    """Before and after, what colours alone know, and where on the way the k-NN was best."""
    if judged is None:
        return ["  judged   not compared: that needs labels in --data, a labelled --test-data and the source"]
    lines = [
        f"  before   {sentence(judged['before'])}",
        f"  after    {sentence(judged['after'])}",
        *(f"  {verdict}" for verdict in judged["verdicts"]),
        f"  colours  k-NN {judged['colours']:.1f} %: histograms of colours alone, which two crops of an image share",
    ]
    if history:
        best = max(history, key=lambda line: line["knn_top1"])
        if best is not history[-1]:
            lines.append(
                f"  the k-NN on the way was best after epoch {best['epoch']:g} ({best['knn_top1']:.1f} %): fewer epochs"
                " may do"
            )
    return lines

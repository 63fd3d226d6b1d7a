"""Measures what the rules of `a2mim.engine.health` ask for, and says what they find: on the screen once, in log.jsonl,
and so in the report.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from torch import Tensor
from tqdm import tqdm

from a2mim.data import EvalLoader
from a2mim.engine import health
from a2mim.engine.hooks import LogHook
from a2mim.engine.records import step_seed
from a2mim.engine.stored import read_log
from a2mim.evaluation.calibration import calibration_rows
from a2mim.evaluation.features import frozen, pooling_of
from a2mim.evaluation.label_free import effective_rank, feature_deviation
from a2mim.mim import MIM
from a2mim.pixels import normalize

SHARE = 0.01  # of the time since the start, at most, after the measurement at the start
QUIET = 20.0  # seconds at the start of a run in which nothing is looked at again
_FEATURES, _LOSSES = 64, 32  # images: of the rank, and of each loss
_NAMES = 3  # of images, that a sentence names


class HealthHook(Hook):
    """The checks that need only the log and the step: spike, starving, and no-learning where the loss has a yardstick.

    Args:
        advice: for no-learning: what the recipe sets, as part of a sentence.
    """

    priority = 75  # after the log's line

    def __init__(self, advice: str = ""):
        self.advice = advice
        self.raised: set[str] = set()

    def before_train(self, runner) -> None:
        log, settings = runner.hook("log", LogHook), runner.run.settings
        self.log, self.last = log, log.last
        warmup = round(settings.schedule.warmup_epochs * len(runner.run.loader))
        self.no_learning = health.NoLearning(warmup, runner.max_iters, self.advice)
        if is_main_process():
            kept = read_log(log.path)[0]
            self.raised = {str(line["check"]) for line in kept if "check" in line}
        self.spikes = health.Spikes(settings.clip_grad)
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.starving = health.Starving(runner.run.num_workers, cores, last=runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not is_main_process():
            return
        step, norm = runner.iter, runner.optim_wrapper.grad_norm
        self.tell(step, "spike", self.spikes.see(step, norm, lambda: image_names(runner, data_batch)))
        line = self.log.last
        if line is self.last or line.get("step") != step:
            return
        self.last = line
        self.tell(step, "starving", self.starving.see(line))
        self.tell(step, "no-learning", self.no_learning.see(line))

    def tell(self, step: int, check: str, sentence: str | None) -> None:
        """Says a sentence, if there is one and the check has not been raised before."""
        if sentence is None or check in self.raised:
            return
        self.raised.add(check)
        self.log.append({"step": step, "event": "health", "check": check, "says": f"{check}: {sentence}"})
        tqdm.write(f"look here: {check}: {sentence}")


def image_names(runner, batch: dict | None) -> list[str]:
    """The names of the first images of a batch."""
    ids = (batch or {}).get("ids")
    dataset = runner.run.task.train_set
    if ids is None or dataset.stream:
        return []
    return [dataset.name(int(i)) for i in ids[:_NAMES]]


@dataclass(frozen=True)
class Fixed:
    """Images that are looked at again and again, (N, C, H, W) as stored.

    Args:
        train: training images.
        unseen: others; None where there are none.
    """

    train: Tensor
    unseen: Tensor | None


def fixed_images(train_set, test_set, img_size: int, seed: int) -> Fixed:
    """Central crops of a few images of each set."""

    def read(dataset, number: int) -> Tensor:
        rows = np.sort(calibration_rows(dataset, number, seed))
        batches = EvalLoader(dataset, img_size, resize=None, batch_size=number, indices=rows)
        return torch.cat([batch["images"] for batch in batches])

    unseen = None if test_set is None or not len(test_set) else read(test_set, _LOSSES)
    return Fixed(read(train_set, _FEATURES), unseen)


class PretrainHealthHook(HealthHook):
    """Also the checks that look at fixed images at the ends of epochs: collapse, leak, memorising.

    The next line of log.jsonl has "effective_rank" and "feature_std" of the features. A look that would cost more than
    SHARE of the time is passed over. What was found at the start is in the checkpoints.

    Args:
        images: a function that reads the fixed images; called once, by the first process.
    """

    def __init__(self, advice: str, images: Callable[[], Fixed]):
        super().__init__(advice)
        self.images = images
        self.start: dict[str, float] = {}  # of the start: "effective_rank", and "ratio": unseen / seen loss
        self.cost = self.spent = self.began = 0.0

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if not is_main_process():
            return
        began = time.perf_counter()
        self.fixed = self.images()
        if not self.start:
            self.look(runner)
        self.began = time.perf_counter()
        self.cost = self.began - began

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        due = runner.run.loader.ends(runner.iter, 1) or runner.iter == runner.max_iters
        if is_main_process() and due:
            began = time.perf_counter()
            elapsed = began - self.began
            if elapsed < QUIET or self.spent + self.cost > SHARE * elapsed:
                return
            self.look(runner)
            self.cost = time.perf_counter() - began
            self.spent += self.cost

    def look(self, runner) -> None:
        """Measures, writes a line, and asks the rules."""
        model, step, context = runner.inner_model, runner.iter, runner.context
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                features = pooled(model, context.to_device(self.fixed.train))
                found = self._losses(model, context, runner.seed)
        finally:
            for module, training in modes:
                module.training = training
        if not torch.isfinite(features).all():
            return  # the next checkpoint refuses to be written, and says why
        rank, deviation = effective_rank(features), feature_deviation(features)
        if not self.start:
            ratio = found["unseen"] / found["seen"] if "unseen" in found and found["seen"] > 0 else 0.0
            self.start = {"effective_rank": rank, "ratio": ratio}
            return
        self.log.extra = {"effective_rank": round(rank, 4), "feature_std": round(deviation, 6)}
        runner.visualizer.add_scalars({"effective_rank": rank, "feature_std": deviation}, step=step)
        self.tell(step, "collapse", health.collapse(rank, self.start["effective_rank"]))
        if "unseen" in found:
            self.tell(step, "memorising", health.memorising(found["seen"], found["unseen"], self.start["ratio"]))
        if "swapped" in found:
            self.tell(step, "leak", health.leak(found["own"], found["swapped"], found["simple"]))

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint["health"] = dict(self.start)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self.start = dict(checkpoint.get("health") or {})

    def _losses(self, model: MIM, context, seed: int) -> dict:
        train = context.to_device(self.fixed.train[:_LOSSES])
        generator = torch.Generator(context.device).manual_seed(step_seed(seed, 0, 0, "health"))
        found = leak_losses(model, train, generator)
        if self.fixed.unseen is not None:
            generator.manual_seed(step_seed(seed, 0, 0, "health"))
            found["unseen"] = total(model(context.to_device(self.fixed.unseen), mode="loss", generator=generator))
        return found


def pooled(model: MIM, images: Tensor) -> Tensor:
    """(N, D) features of whole images, as timm hands them to a classifier."""
    encoder = model.encoder.model
    with frozen(encoder):
        return pooling_of(encoder, "default")(normalize(images, model.mean, model.std)).float().cpu()


def leak_losses(model: MIM, images: Tensor, generator: torch.Generator) -> dict:
    """Losses of one mask: "seen" and "own" of the images, "swapped" with every visible cell of another image, and
    "simple": answers that see nothing. Only "seen" where the target is no image: then a hidden cell's target may depend
    on visible ones.
    """
    images = normalize(images, model.mean, model.std)
    mask = model.draw_mask(images, generator)
    shown = model(images, mode="predict", mask=mask)
    target, hidden = shown["target"], shown["hidden"]
    own = total(model.compare(shown["recon"], target, hidden))
    if target.shape != images.shape or len(images) < 2:
        return {"seen": own}
    mixed = torch.where(hidden, images, images.roll(1, dims=0))
    swapped = model(mixed, mode="predict", mask=mask)
    mean_image = target.mean(dim=0, keepdim=True).expand_as(target)
    return {
        "seen": own,
        "own": own,
        "swapped": total(model.compare(swapped["recon"], target, hidden)),
        "simple": [total(model(images, mode="baseline", mask=mask)), total(model.compare(mean_image, target, hidden))],
    }


def total(losses: dict) -> float:
    """The sum of named losses."""
    return float(sum(losses.values()))

"""The hooks that measure what the rules of `a2mim.engine.health` need. They say each fault once on the screen, and
write it to log.jsonl, from where the report takes it.
"""

from __future__ import annotations

import time
from collections import deque
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
from a2mim.engine.cores import usable_cores
from a2mim.engine.hooks import LogHook
from a2mim.engine.records import step_seed
from a2mim.engine.stored import read_log
from a2mim.evaluation.calibration import calibration_rows
from a2mim.evaluation.features import frozen, pooling_of
from a2mim.evaluation.label_free import effective_rank, feature_deviation
from a2mim.mim import MIM
from a2mim.pixels import normalize
from a2mim.processes.group import agree

SHARE = 0.01  # the largest share of the time that looks may take, without the first
QUIET = 20.0  # seconds after the first look in which there is no other
_FEATURES, _LOSSES = 64, 32  # images for the rank, and for each loss
_NAMES = 3  # images that a sentence names


class HealthHook(Hook):
    """The checks that need only the log and the gradient norm: spike, starving, and no-learning where the log has the
    loss of one colour.

    Args:
        advice: part of the sentence of no-learning: which settings of the recipe to look at.
    """

    priority = 75  # after the log's line

    def __init__(self, advice: str = ""):
        self.advice = advice
        self.raised: set[str] = set()
        self.shown: deque[tuple[int, Tensor | None]] = deque(maxlen=2)  # steps, and the ids of their images

    def before_train(self, runner) -> None:
        log, settings = runner.hook("log", LogHook), runner.run.settings
        self.log, self.last = log, log.last
        warmup = round(settings.schedule.warmup_epochs * len(runner.run.loader))
        self.no_learning = health.NoLearning(warmup, runner.max_iters, self.advice)
        if is_main_process():
            kept = read_log(log.path)[0]
            self.raised = {str(line["check"]) for line in kept if "check" in line}
            for line in kept:  # a run that goes on knows how its loss fell before
                self.no_learning.note(line)
        self.spikes = health.Spikes(settings.clip_grad)
        self.starving = health.Starving(runner.run.num_workers, usable_cores(), last=runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not is_main_process():
            return
        step = runner.iter
        self.shown.append((step, (data_batch or {}).get("ids")))
        self.see_norms(runner)
        line = self.log.last
        if line is self.last or line.get("step") != step:
            return
        self.last = line
        self.tell(step, "starving", self.starving.see(line))
        self.tell(step, "no-learning", self.no_learning.see(line))

    def see_norms(self, runner) -> None:
        """Looks at the gradient norms that have become known; those of the last step may come with the next one."""
        norms = runner.train_loop.norms
        while norms:
            step, norm = norms.popleft()
            ids = dict(self.shown).get(step)
            self.tell(step, "spike", self.spikes.see(step, norm, lambda ids=ids: image_names(runner, ids)))

    def after_train(self, runner) -> None:
        if is_main_process():
            runner.train_loop.settle()
            self.see_norms(runner)

    def tell(self, step: int, check: str, sentence: str | None) -> None:
        """Says the sentence of a check, unless the check has spoken before."""
        if sentence is None or check in self.raised:
            return
        self.raised.add(check)
        self.log.append({"step": step, "event": "health", "check": check, "says": f"{check}: {sentence}"})
        tqdm.write(f"look here: {check}: {sentence}")


def image_names(runner, ids: Tensor | None) -> list[str]:
    """The names of the first images of a batch, from their numbers; none for a stream, which has no names."""
    dataset = runner.run.task.train_set
    if ids is None or dataset.stream:
        return []
    return [dataset.name(int(i) % len(dataset)) for i in ids[:_NAMES]]  # ids of copies go on behind the last image


@dataclass(frozen=True)
class Fixed:
    """The same few images for each look, (N, C, H, W) as the loader gives them.

    Args:
        train: training images.
        unseen: test images; None where there are none.
    """

    train: Tensor
    unseen: Tensor | None


def fixed_images(train_set, test_set, img_size: int | tuple[int, int], seed: int) -> Fixed:
    """Central crops of a few images of each set."""

    def read(dataset, number: int) -> Tensor:
        rows = np.sort(calibration_rows(dataset, number, seed))
        batches = EvalLoader(dataset, img_size, resize=None, batch_size=number, indices=rows)
        return torch.cat([batch["images"] for batch in batches])

    unseen = None if test_set is None or not len(test_set) else read(test_set, _LOSSES)
    return Fixed(read(train_set, _FEATURES), unseen)


class PretrainHealthHook(HealthHook):
    """Also the checks that look at fixed images: collapse, leak, memorising. A look is due at the end of each epoch.

    The next line of log.jsonl holds "effective_rank" and "feature_std" of the features. A look is left out where all
    looks would take more than SHARE of the time. The numbers of the first look are kept in the checkpoints.

    Args:
        images: a function that reads the fixed images. The first process calls it once.
    """

    def __init__(self, advice: str, images: Callable[[], Fixed]):
        super().__init__(advice)
        self.images = images
        self.start: dict[str, float] = {}  # of the first look: "effective_rank", and "ratio": unseen / seen loss
        self.cost = self.spent = self.began = 0.0

    def before_train(self, runner) -> None:
        super().before_train(runner)
        began = time.perf_counter()
        if is_main_process():
            self.fixed = self.images()
        if not self.start:
            with runner.whole() as model:
                if is_main_process():
                    self.look(runner, model)
        self.began = time.perf_counter()
        self.cost = self.began - began

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        due = runner.run.loader.ends(runner.iter, 1) or runner.iter == runner.max_iters
        if not due or not agree(self.has_time):
            return
        with runner.whole() as model:
            if is_main_process():
                began = time.perf_counter()
                self.look(runner, model)
                self.cost = time.perf_counter() - began
                self.spent += self.cost

    def has_time(self) -> bool:
        """Whether a look would keep to its share of the time."""
        elapsed = time.perf_counter() - self.began
        return elapsed >= QUIET and self.spent + self.cost <= SHARE * elapsed

    def look(self, runner, model: MIM) -> None:
        """Measures, hands the numbers to the log, and says what the rules find. model: with all weights."""
        step, context = runner.iter, runner.context
        with frozen(model):
            features = pooled(model, context.to_device(self.fixed.train))
            found = self._losses(model, context, runner.seed)
        if not torch.isfinite(features).all():
            return  # the next checkpoint is refused, with the reason
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
    """(N, D): the features of whole images that timm hands to a classifier."""
    return pooling_of(model.encoder.model, "default")(normalize(images, model.mean, model.std)).float().cpu()


def leak_losses(model: MIM, images: Tensor, generator: torch.Generator) -> dict:
    """Losses under one mask; of several masks of an image, the first.

    Returns:
        "seen" and "own": of the images; "swapped": when every visible cell comes from another image; "simple": of two
        answers that need no network. Only "seen" where the target is no image, because a hidden cell's target may then
        depend on visible pixels.
    """
    images = normalize(images, model.mean, model.std)
    mask = model.draw_mask(images, generator)
    mask = mask[:, 0] if mask.ndim == 4 else mask
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

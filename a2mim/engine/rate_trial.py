"""The learning rate of a fine-tuning, chosen by short trials on held-out training images.

Invariant: the test set takes no part, and the run itself starts as if there had been no trial.
"""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import torch
from torch import nn

from a2mim.data import EvalLoader, ImageDataset, TrainLoader
from a2mim.engine.assembly import crop_of
from a2mim.engine.classifier import Classifier
from a2mim.engine.finetune_settings import FinetuneSchedule, FinetuneSettings
from a2mim.engine.mixing import Mixing
from a2mim.engine.optim import build_layered_optimizer, build_schedule
from a2mim.evaluation.linear import hold_out
from a2mim.evaluation.subsets import subset_of
from a2mim.wiring.model_type import TimmModel

HELD_OUT = 0.2  # of each class
SHARE = 1 / 3  # of the run's steps, that a trial takes


def choose_rate(
    model: Classifier,
    train_set: ImageDataset,
    settings: FinetuneSettings,
    augmentation: dict,
    view: dict,
    device: torch.device,
) -> dict:
    """Tries each of `optimizer.rates` on a part of the training images and judges it on the others.

    Args:
        model: with its first weights; it is not changed.
        train_set: the labelled images that the run trains on.
        augmentation: what `TrainLoader` takes beyond the crop.
        view: img_size, resize and interpolation of the central crops of held-out images.
        device: where the trials run.

    Returns:
        "base_lr", the most accurate rate, of equal ones that with the least loss; "tried", {rate: [top-1 in percent,
        loss]}; "held_out" and "steps". Where no class has two images, the recipe's own rate, and nothing is tried.
    """
    held = hold_out(torch.from_numpy(np.asarray(train_set.labels)), HELD_OUT, settings.seed).numpy()
    if not len(held):
        return {"base_lr": settings.optimizer.base_lr, "tried": {}, "held_out": 0, "steps": 0}
    kept = np.setdiff1d(np.arange(len(train_set)), held)
    batch = min(settings.global_batch_size, len(kept))
    whole = settings.schedule.epochs * max(1, len(train_set) // settings.global_batch_size)
    steps = max(1, round(SHARE * whole))
    tried = {}
    for rate in settings.optimizer.rates:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(settings.seed)
            trial = copy.deepcopy(model).to(device)
            _train(trial, _loader(subset_of(train_set, kept), batch, settings, augmentation), settings, rate, steps)
        tried[rate] = _judge(trial, EvalLoader(train_set, indices=held, **view))
    best = max(tried, key=lambda rate: (tried[rate][0], -tried[rate][1]))
    return {"base_lr": best, "tried": tried, "held_out": len(held), "steps": steps}


def _loader(images: ImageDataset, batch: int, settings: FinetuneSettings, augmentation: dict) -> TrainLoader:
    """The run's random crops; every process sees all of them."""
    data = settings.data
    return TrainLoader(images, data.img_size, batch, seed=settings.seed, **crop_of(data), **augmentation)


def _train(trial: Classifier, loader: TrainLoader, settings: FinetuneSettings, rate: float, steps: int) -> None:
    """The run in short: its optimiser at `rate`, its cosine, its mixing and its clipping; in float32 or bfloat16."""
    device = next(trial.parameters()).device
    chosen = settings.optimizer.model_copy(update={"base_lr": rate})
    optimizer = build_layered_optimizer(trial.model, chosen, settings.global_batch_size)
    schedule = build_schedule(optimizer, _shortened(settings.schedule, len(loader), steps), len(loader), steps)
    network: TimmModel = trial.model
    mixing = Mixing(network.num_classes, settings.augment.erasing, settings.mix, settings.seed, device)
    amp = torch.autocast(device.type, torch.bfloat16, enabled=settings.amp is not None)
    trial.train()
    batches = enumerate(itertools.chain.from_iterable(itertools.repeat(loader)))
    for step, batch in itertools.islice(batches, steps):
        schedule.step_update(step)
        images = mixing.erase(trial.normalize(batch["images"].to(device)), batch["ids"], step // len(loader))
        images, targets = mixing.mix(images, batch["labels"].to(device), settings.seed + step)
        with amp:
            (loss,) = trial(images, targets).values()
        loss.backward()
        if settings.clip_grad:
            nn.utils.clip_grad_norm_(trial.parameters(), settings.clip_grad)
        optimizer.step()
        optimizer.zero_grad()


def _shortened(schedule: FinetuneSchedule, steps_per_epoch: int, steps: int) -> FinetuneSchedule:
    """The warm-up keeps its share of the run."""
    warmup = schedule.warmup_epochs / schedule.epochs * steps / steps_per_epoch
    return schedule.model_copy(update={"warmup_epochs": warmup})


@torch.no_grad()
def _judge(trial: Classifier, loader: EvalLoader) -> list[float]:
    """[top-1 in percent, mean cross-entropy]; a diverged network is the worst there is."""
    device, right, loss, images = next(trial.parameters()).device, 0.0, 0.0, 0
    trial.eval()
    for batch in loader:
        labels = batch["labels"].to(device)
        logits = trial(batch["images"].to(device), mode="predict")
        right += (logits.argmax(dim=1) == labels).sum().item()
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        images += len(labels)
    if not math.isfinite(loss) or not images:
        return [0.0, math.inf]
    return [100 * right / images, loss / images]

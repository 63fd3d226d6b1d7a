"""A classifier judged on the test images while it is trained: the last number, the best one, and every answer."""

from __future__ import annotations

import copy

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from timm.utils import distribute_bn

from a2mim.batchnorm import batchnorm_statistics, calibrate_batchnorm, has_batchnorm, load_statistics
from a2mim.data import EvalLoader
from a2mim.engine.classifier import at_size
from a2mim.engine.hooks import LogHook
from a2mim.evaluation.calibration import calibration_batches, calibration_loader
from a2mim.evaluation.features import frozen


class EvaluationHook(Hook):
    """Top-1 and top-5 every few epochs and at the end, in float32, of the averaged weights where they are kept.

    Several processes take a share of the images each. Every process gathers BatchNorm's statistics for itself; they
    are averaged before an evaluation and before each checkpoint. Averaged weights have had no images of their own, so
    their statistics are taken from training images before each evaluation, and stay for the export.

    Args:
        dataset: test images; those without a label are not judged.
        train_set: whose calibration images averaged weights take BatchNorm's statistics from.
        every_epochs: between two evaluations.
        view: what EvalLoader takes: img_size, resize, interpolation, batch_size.
    """

    priority = 80  # after the log's line, before the checkpoint, which carries the history

    def __init__(self, dataset, train_set, every_epochs: int, view: dict):
        self.dataset, self.train_set, self.every_epochs, self.view = dataset, train_set, every_epochs, view
        self.history: list[dict] = []
        self.correct: torch.Tensor | None = None  # (M,) of the last evaluation: 1 right, 0 wrong, -1 not judged
        self.loader: EvalLoader | None = None

    @property
    def last(self) -> dict:
        return self.history[-1] if self.history else {}

    def before_train(self, runner) -> None:
        share = np.flatnonzero(self.dataset.labels >= 0)[runner.rank :: runner.world_size]
        self.loader = EvalLoader(self.dataset, indices=share, num_workers=runner.run.num_workers, **self.view)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.run.loader.ends(runner.iter, self.every_epochs) or runner.iter == runner.max_iters:
            self.evaluate(runner)

    def after_train(self, runner) -> None:
        if runner.iter == runner.max_iters and self.correct is None:  # a finished run that was resumed
            self.evaluate(runner, note=False)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        even_batchnorm(runner)
        checkpoint["evaluations"] = self.history

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self.history = list(checkpoint.get("evaluations", []))

    def evaluate(self, runner, note: bool = True) -> None:
        """One pass; `note`: into the history and the log."""
        even_batchnorm(runner)
        with runner.whole(averaged=True) as model:
            if runner.averaged is not runner.inner_model:
                self.calibrate(runner, model)
            ranks, loss = self.run(runner, model)
        self.correct = torch.where(ranks < 0, ranks, (ranks == 0).long())
        judged = int((ranks >= 0).sum())
        if not note or not judged:
            return
        step = runner.iter
        line = {"step": step, "epoch": round(runner.run.loader.epochs_done(step), 3)}
        line |= {"test_top1": 100 * (ranks == 0).sum().item() / judged}
        line |= {"test_top5": 100 * ((ranks >= 0) & (ranks < 5)).sum().item() / judged, "test_loss": loss}
        self.history.append(line)
        if is_main_process():
            runner.hook("log", LogHook).append(line)
            runner.visualizer.add_scalars({k: v for k, v in line.items() if isinstance(v, float)}, step=step)

    def calibrate(self, runner, model) -> None:
        """Gives averaged weights BatchNorm's statistics: every process from the same images, so all get the same."""
        if not has_batchnorm(model):
            return
        view = {key: self.view[key] for key in ("img_size", "resize", "interpolation")}
        loader = calibration_loader(self.train_set, **view, num_workers=runner.run.num_workers)
        batches = calibration_batches(loader, lambda images: model.normalize(runner.context.to_device(images)))
        calibrate_batchnorm(model.model, batches)
        if model is not runner.averaged:  # a copy for this evaluation
            load_statistics(runner.averaged, batchnorm_statistics(model))

    def judged(self, model) -> torch.nn.Module:
        """The classifier, with positions resampled where the network is of a fixed size and is judged at another."""
        network = at_size(model.model, self.view["img_size"], self.dataset.pixel_format.in_chans)
        if network is not model.model:
            model = copy.deepcopy(model)
            model.model = network
        return model

    def run(self, runner, model) -> tuple[torch.Tensor, float]:
        """((M,) how many classes score above the true one, -1 where one is not judged; mean cross-entropy)."""
        model, ranks, total = self.judged(model), torch.full((len(self.dataset),), -1), torch.zeros(2).double()
        assert self.loader is not None  # made before the training
        with frozen(model):
            for batch in self.loader:
                labels = batch["labels"].to(runner.context.device)
                logits = model(runner.context.to_device(batch["images"]), mode="predict")
                ranks[batch["ids"]] = rank_of_label(logits, labels).cpu()
                known = labels < logits.shape[1]
                losses = torch.nn.functional.cross_entropy(logits[known], labels[known], reduction="sum")
                total += torch.tensor([losses.item(), int(known.sum())], dtype=torch.float64)
        if runner.distributed:
            ranks, total = (
                gather(value, runner.context.device, how) for value, how in ((ranks, "max"), (total, "sum"))
            )
        return ranks, (total[0] / total[1].clamp(min=1)).item()


def rank_of_label(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B,): how many classes score above the true one, or as much with a smaller number; all of them and five more
    where the score is not finite, or the label is no output of the classifier.
    """
    known = labels < logits.shape[1]
    own = logits.gather(1, torch.where(known, labels, 0)[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    ranks = (~(logits <= own) | ((logits == own) & earlier)).sum(dim=1)
    return torch.where(own[:, 0].isfinite() & known, ranks, logits.shape[1] + 5)


def gather(value: torch.Tensor, device: torch.device, how: str) -> torch.Tensor:
    """The elementwise maximum or sum over the processes."""
    value = value.to(device)
    torch.distributed.all_reduce(value, getattr(torch.distributed.ReduceOp, how.upper()))
    return value.cpu()


def even_batchnorm(runner) -> None:
    """The same running statistics on every process: their mean."""
    if runner.distributed:
        for model in {id(m): m for m in (runner.inner_model, runner.averaged)}.values():
            distribute_bn(model, runner.world_size, reduce=True)

"""`seg-linear`: batch normalisation and a linear layer on cached cells; every cell is a sample with soft labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from a2mim.evaluation.attentive_probe import CellFile
from a2mim.evaluation.heads import MOMENTUM, LinearHeads
from a2mim.evaluation.linear import cosine, epochs_for
from a2mim.evaluation.miou import confusion, scores
from a2mim.evaluation.segmentation import SegmentationTask, shares, split_images
from a2mim.text import ProgressBar


class SoftHeads(LinearHeads):
    """Linear heads on batch-normalised cells, under targets that are shares of classes."""

    def __init__(self, lrs, dim: int, n_classes: int, seed: int = 0, device="cpu"):
        super().__init__(lrs, dim, n_classes, seed, device)
        self.norm = nn.BatchNorm1d(dim, affine=False).to(device)

    @torch.no_grad()
    def step(self, features: Tensor, targets: Tensor, factor: float) -> None:
        """One SGD step of every head on cells (B, D) and shares (B, C), at `factor` times its peak rate."""
        if len(features) < 2:  # one cell has no deviation
            return
        normal = self.norm.train()(features)
        error = (super().logits(normal).softmax(dim=1) - targets.T) / len(features)
        gradients = (error.flatten(0, 1) @ normal).view_as(self.weight), error.sum(dim=2, keepdim=True)
        for value, velocity, gradient in zip((self.weight, self.bias), self._velocity, gradients, strict=True):
            velocity.mul_(MOMENTUM).add_(gradient)
            value.addcmul_(velocity, self.lrs, value=-factor)

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """(B, D) -> (H, C, B)."""
        return super().logits(self.norm.eval()(features))


def run(task: SegmentationTask, c: dict) -> tuple[Iterator[np.ndarray], dict]:
    """(predictions of the test images, what was chosen)."""
    held, kept = split_images(len(task.train), c["held_out"], c["seed"])
    heads = _train(task, kept, c)
    found = np.zeros((len(c["base_lrs"]), task.n_classes, task.n_classes), np.int64)
    for cells, truth in task.maps(task.train, held, "held-out maps"):
        for h, predicted in enumerate(_predict(heads, cells, task.reader.grid, truth.shape)):
            found[h] += confusion(predicted, truth, task.n_classes, task.ignore)
    judged = [scores(counts)["miou"] if counts.sum() else 0.0 for counts in found]
    best = int(np.argmax(judged))
    heads.weight, heads.bias = heads.weight[best : best + 1], heads.bias[best : best + 1]
    maps = task.maps(task.test, np.arange(len(task.test)), "test maps")
    predictions = (next(_predict(heads, cells, task.reader.grid, truth.shape)) for cells, truth in maps)
    return predictions, {"base_lr": c["base_lrs"][best], "held_out_miou": judged[best], "held_out": len(held)}


def _train(task: SegmentationTask, rows: np.ndarray, c: dict) -> SoftHeads:
    """Heads of all rates; cells without a judged pixel are left out."""
    file, soft = CellFile(), []
    for cells, mask in task.maps(task.train, rows, "training maps"):
        file.add(cells[None])
        soft.append(shares(mask, task.reader.grid, task.n_classes, task.ignore))
    features, targets = file.all().flatten(0, 1), torch.from_numpy(np.concatenate(soft))
    judged = torch.nonzero(targets.sum(1) > 0)[:, 0]
    if not len(judged):
        raise ValueError(f"every pixel of the images to train on is ignored (id {task.ignore}).")
    device = task.encoder.device
    heads = SoftHeads(c["base_lrs"], task.reader.channels, task.n_classes, c["seed"], device)
    steps_an_epoch = -(-len(judged) // c["batch_cells"])
    epochs = epochs_for(c, steps_an_epoch)
    generator, step = torch.Generator().manual_seed(c["seed"] + 1), 0
    for _ in ProgressBar(range(epochs), desc="linear heads", unit="epoch", leave=False):
        for some in judged[torch.randperm(len(judged), generator=generator)].split(c["batch_cells"]):
            factor = cosine(step / (epochs * steps_an_epoch))
            heads.step(features[some].to(device).float(), targets[some].to(device), factor)
            step += 1
    return heads


def _predict(heads: SoftHeads, cells: Tensor, grid: tuple[int, int], size: tuple[int, ...]) -> Iterator[np.ndarray]:
    """(h·w, D) -> (H, W) classes of every head: scores are enlarged bilinearly to the size of the mask."""
    for logits in heads.logits(cells.float()):
        large = interpolate(logits.view(1, -1, *grid), size=tuple(size), mode="bilinear", align_corners=False)
        yield large[0].nan_to_num(-torch.inf).argmax(0).cpu().numpy()

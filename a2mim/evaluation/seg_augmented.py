"""`seg-linear-aug`: dropout, batch normalisation and a linear layer on fresh crops; sliding windows at the test."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad

from a2mim.evaluation.cells import map_of
from a2mim.evaluation.linear import cosine
from a2mim.evaluation.segmentation import SegmentationTask
from a2mim.text import ProgressBar


def run(task: SegmentationTask, c: dict) -> tuple[Iterator[np.ndarray], dict]:
    """(predictions of the test images, what was chosen). One rate as published: nothing is held out."""
    head = train(task, c).eval()

    def predictions() -> Iterator[np.ndarray]:
        for i in ProgressBar(range(len(task.test)), desc="sliding windows", unit="image", leave=False):
            image, truth = task.item(task.test, i)
            yield slide(task, head, image, truth.shape, c["window_stride"])

    return predictions(), {"lr": c["lr"], "steps": c["steps"]}


def train(task: SegmentationTask, c: dict) -> nn.Module:
    """The head after `steps` batches; statistics of all processes are those of one, as there is one."""
    device, run = task.encoder.device, map_of(task.encoder.model, task.reader)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(c["seed"])
        layer = nn.Conv2d(task.reader.channels, task.n_classes, 1)
        nn.init.normal_(layer.weight, std=0.01)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        head = nn.Sequential(nn.Dropout2d(c["dropout"]), nn.BatchNorm2d(task.reader.channels), layer).to(device)
        optimizer = torch.optim.AdamW(head.parameters(), lr=c["lr"], weight_decay=c["weight_decay"])
        generator = np.random.default_rng(c["seed"])
        for step in ProgressBar(range(c["steps"]), desc="linear layer", unit="step", leave=False):
            warm = step / c["warmup_steps"] if step < c["warmup_steps"] else 1.0
            past = (step - c["warmup_steps"]) / max(1, c["steps"] - c["warmup_steps"])
            optimizer.param_groups[0]["lr"] = c["lr"] * (warm if warm < 1 else cosine(past))
            rows = generator.integers(len(task.train), size=min(c["batch_size"], len(task.train)))
            crops = [crop(*task.item(task.train, int(i)), task.size, c["scale"], task.ignore, generator) for i in rows]
            targets = torch.stack([labels for _, labels in crops]).to(device)
            if (targets == task.ignore).all():
                continue
            maps = run(task.encoder.normalized(torch.stack([image for image, _ in crops])))
            logits = interpolate(head(maps), size=task.size, mode="bilinear", align_corners=False)
            optimizer.zero_grad()
            cross_entropy(logits, targets, ignore_index=task.ignore).backward()
            optimizer.step()
    return head


def crop(image: np.ndarray, labels: np.ndarray, size, scale, ignore: int, generator) -> tuple[Tensor, Tensor]:
    """A scaled, placed and maybe flipped crop: (3, H, W) uint8 and (H, W) int64; outside it is grey and ignored."""
    short = min(size) * generator.uniform(*scale)
    height, width = (max(1, round(side * short / min(labels.shape))) for side in labels.shape)
    large = _enlarged(image, (height, width))
    rows, columns = (np.arange(n) * old // n for n, old in zip((height, width), labels.shape, strict=True))
    ids = torch.from_numpy(labels[rows[:, None], columns[None, :]])
    more = [max(0, side - have) for side, have in zip(size, (height, width), strict=True)]
    if any(more):
        large = pad(large, (0, more[1], 0, more[0]), value=128)
        ids = pad(ids, (0, more[1], 0, more[0]), value=ignore)
    top, left = (int(generator.integers(have - side + 1)) for have, side in zip(ids.shape, size, strict=True))
    large, ids = large[:, top : top + size[0], left : left + size[1]], ids[top : top + size[0], left : left + size[1]]
    return (large.flip(2), ids.flip(1)) if generator.random() < 0.5 else (large, ids)


@torch.no_grad()
def slide(task: SegmentationTask, head: nn.Module, image: np.ndarray, size, stride: float) -> np.ndarray:
    """(H, W) classes in the size of the mask: soft-max scores of overlapping windows, averaged, enlarged bilinearly.

    Args:
        size: of the mask.
        stride: between windows, as a share of one.
    """
    run, window = map_of(task.encoder.model, task.reader), task.size
    short = min(window) / min(image.shape[:2])
    scaled = [max(side, round(old * short)) for side, old in zip(window, image.shape[:2], strict=True)]
    large = _enlarged(image, tuple(scaled))
    total = torch.zeros(task.n_classes, *scaled, device=task.encoder.device)
    times = torch.zeros(scaled, device=task.encoder.device)
    for top in starts(scaled[0], window[0], stride):
        for left in starts(scaled[1], window[1], stride):
            place = slice(top, top + window[0]), slice(left, left + window[1])
            logits = head(run(task.encoder.normalized(large[:, place[0], place[1]][None])))
            logits = interpolate(logits, size=window, mode="bilinear", align_corners=False)
            total[:, place[0], place[1]] += logits[0].softmax(0)
            times[place] += 1
    mean = interpolate((total / times)[None], size=tuple(size), mode="bilinear", align_corners=False)
    return mean[0].argmax(0).cpu().numpy()


def starts(length: int, window: int, stride: float) -> list[int]:
    """Where windows begin, the last one at the end."""
    step = max(1, int(window * stride))
    return [*range(0, length - window, step), length - window]


def _enlarged(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """(H, W, 3) uint8 -> (3, *size) uint8, bilinear."""
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    x = interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
    return x[0].round().clamp(0, 255).to(torch.uint8)

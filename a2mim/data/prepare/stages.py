"""Measures the time of each stage from a shard to a batch, how it scales with workers, and what limits it."""

import os
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from a2mim.data import keyed
from a2mim.data.crops import DRAWS, height_and_width, random_box, resize
from a2mim.data.dataset import ImageDataset
from a2mim.data.decode import UnreadableImage
from a2mim.data.loader import TrainLoader
from a2mim.data.plan import Plan

STAGES = ("read", "decode", "crop", "resize", "write")
_STARVED = 0.25  # if reading takes a larger share, the source is slow, not the processor
_SCALES = 0.7  # if n workers are faster than one by less than this times n, more workers bring little


@dataclass
class Speed:
    """The speed with a number of workers."""

    workers: int  # 0: the consuming process makes the batches
    images_per_second: float
    wait: float  # ms per image that the consumer waits
    cpu: float  # ms of processor time per image in all processes; nan if the system does not report it


def measure_stages(
    dataset: ImageDataset, img_size: int | tuple[int, int], images: int, interpolation: str = "bilinear"
) -> dict[str, float]:
    """ms per image of each stage, measured one after the other in this process with one thread, in a training order.
    Unreadable images are not counted.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _stages(dataset, height_and_width(img_size), _ids(dataset, images), interpolation)
    finally:
        torch.set_num_threads(before)


def _ids(dataset: ImageDataset, images: int) -> np.ndarray:
    return Plan(dataset.shard_sizes, min(images, len(dataset))).batch(0, 0)


def _stages(dataset: ImageDataset, size: tuple[int, int], ids: np.ndarray, interpolation: str) -> dict[str, float]:
    spent, done = Counter(dict.fromkeys(STAGES, 0.0)), 0
    uniforms = keyed.uniforms(0, 0, dataset.keys[ids], DRAWS)
    batch = np.empty((dataset.pixel_format.in_chans, *size), dataset.pixel_format.dtype)
    dataset.will_need(ids)
    for i, u in zip(ids, uniforms, strict=True):
        marks = [time.perf_counter()]
        try:
            content = dataset.store.content(int(i))
            marks.append(time.perf_counter())
            pixels = dataset.decode(content)
        except UnreadableImage:
            continue
        marks.append(time.perf_counter())
        x, y, w, h = random_box(u, pixels.shape[1], pixels.shape[0], (0.67, 1.0), (3 / 4, 4 / 3))
        crop = pixels[y : y + h, x : x + w]
        marks.append(time.perf_counter())
        image = resize(crop, size, interpolation)
        marks.append(time.perf_counter())
        batch[:] = image
        marks.append(time.perf_counter())
        spent.update(dict(zip(STAGES, np.diff(marks), strict=True)))
        done += 1
    if not done:
        raise ValueError(f"none of {len(ids)} images of {dataset.title} can be read; see a2mim shards check")
    return {stage: 1000 * spent[stage] / done for stage in STAGES}


def measure_workers(
    dataset: ImageDataset,
    img_size: int | tuple[int, int],
    images: int,
    workers: int,
    batch_size: int,
    interpolation: str = "bilinear",
) -> Speed:
    """Takes about `images` training images from `workers` processes, after uncounted warm-up batches."""
    batch_size = min(batch_size, len(dataset))
    loader = TrainLoader(dataset, img_size, batch_size, interpolation=interpolation, num_workers=workers)
    batches = _for_ever(loader)
    for _ in range(max(1, 2 * workers)):
        next(batches)
    started, cpu = time.perf_counter(), cpu_seconds()
    waited, taken = 0.0, 0
    while taken < images:
        started_waiting = time.perf_counter()
        taken += len(next(batches).ids)
        waited += time.perf_counter() - started_waiting
    spent, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    return Speed(workers, taken / spent, 1000 * waited / taken, 1000 * cpu / taken)


def _for_ever(loader: TrainLoader):
    while True:
        yield from loader


def cpu_seconds() -> float:
    """Processor time of this process and its children, living ones included; from /proc, elsewhere nan."""
    if not sys.platform.startswith("linux"):
        return float("nan")
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + sum(map(_cpu_of, children()))


def children() -> list[int]:
    """Process numbers of this process's children (Linux)."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(word) for word in file.read().split()]


def _cpu_of(process: int) -> float:
    try:
        with open(f"/proc/{process}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def what_limits(stages: dict[str, float], speeds: list[Speed], cores: int) -> str:
    """One or two sentences: the slowest stage, and what would help."""
    total, slowest = sum(stages.values()), max(stages, key=stages.__getitem__)
    slowest = "read" if stages["read"] > _STARVED * total else slowest
    share = f"{stages[slowest] / total:.0%} of {total:.2f} ms an image"
    if slowest == "read":
        said = f"reading limits ({share}): a nearer or faster disk, or more workers that wait at once"
    elif slowest == "decode":
        said = f"decoding limits ({share}): `a2mim shards reshard` makes the images smaller once, or give more workers"
    elif slowest == "resize":
        said = f"resizing limits ({share}): bilinear is faster than bicubic, or give more workers"
    else:
        said = f"{slowest} limits ({share})"
    alone = next((s for s in speeds if s.workers == 1), None)
    best = max(speeds, key=lambda s: s.images_per_second)
    if alone and speeds[-1].workers > 1:
        gained = speeds[-1].images_per_second / alone.images_per_second
        if gained < _SCALES * speeds[-1].workers:
            said += (
                f"; {speeds[-1].workers} workers give {gained:.1f} times one: {cores} cores are usable here, or"
                " something else keeps them busy"
            )
    return f"{said}. Fastest: {best.images_per_second:.0f} images/s with {best.workers} workers."

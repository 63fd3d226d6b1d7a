"""Whether the data keep up: the loader alone, and the share of a run's time in which it waits for a batch.

The shards are synthetic: JPEGs of ImageNet's usual size, made here, with hard links in place of more images. They lie
in the page cache, so a disk or a network is not measured.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from a2mim.data import TrainLoader, open_dataset
from a2mim.engine.cores import choose_workers

from .isolation import Findings
from .runs import QUIET, lines_of, said, settings_of, start
from .scale import Scale

SHARDS = 8
LONGEST = 35.0  # seconds that a run trains before it is stopped and its log read


def run(scale: Scale, findings: Findings) -> None:
    """The loader alone, then a run of the XCiT and one of the ResNet-50 recipe on the same shards."""
    folder = findings.path.parent / "data"
    folder.mkdir()
    pattern = write_shards(folder / "shards", scale)
    workers = 0 if scale.dry else choose_workers(None, scale.where, laptop=False)
    findings.add("loader alone", workers=workers, images_per_s=round(loader_rate(pattern, workers, scale), 1))
    for recipe in ("a2mim_xcit",) if scale.dry else ("a2mim_xcit", "a2mim_resnet50"):
        if not scale.dry and findings.left() < 25:
            findings.add(recipe, left_out="no time was left")
            continue
        longest = min(LONGEST, findings.left() - 5)
        findings.add(recipe, workers=workers, **waiting(recipe, pattern, folder / recipe, workers, scale, longest))


def write_shards(folder: Path, scale: Scale) -> str:
    """Writes the shards; returns their pattern."""
    folder.mkdir()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(pool.map(lambda seed: jpeg(seed, scale.image_side), range(scale.shard_images)))
    for shard in range(SHARDS):
        with tarfile.open(folder / f"0-{shard}.tar", "w") as tar:
            for number in range(shard, len(images), SHARDS):
                info = tarfile.TarInfo(f"{number:06d}.jpg")
                info.size = len(images[number])
                tar.addfile(info, io.BytesIO(images[number]))
        for copy in range(1, scale.shard_copies):
            try:
                os.link(folder / f"0-{shard}.tar", folder / f"{copy}-{shard}.tar")
            except OSError:  # a file system without hard links
                shutil.copy(folder / f"0-{shard}.tar", folder / f"{copy}-{shard}.tar")
    return str(folder / "*.tar")


def jpeg(seed: int, side: tuple[int, int]) -> bytes:
    """A smooth image with grain, of ImageNet's usual size in bytes."""
    generator = np.random.default_rng(seed)
    smooth = cv2.resize(generator.integers(0, 256, (24, 32, 3), np.uint8), side, interpolation=cv2.INTER_CUBIC)
    grainy = (smooth + generator.normal(0, 14, smooth.shape)).clip(0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(grainy), quality=88, colorsubsampling="420")


def loader_rate(pattern: str, workers: int, scale: Scale) -> float:
    """Images per second of the loader, once every worker has delivered."""
    pinned = scale.where.type == "cuda"
    loader = TrainLoader(open_dataset(pattern), scale.px, scale.batch, num_workers=workers, pin_memory=pinned)
    batches, number = iter(loader), 4 if scale.dry else 40
    for _ in range(workers + 1):
        next(batches)
    started = time.perf_counter()
    for _ in range(number):
        next(batches)
    return number * scale.batch / (time.perf_counter() - started)


def waiting(recipe: str, pattern: str, folder: Path, workers: int, scale: Scale, longest: float) -> dict:
    """Images per second and the share of waiting in a run that is stopped after `longest` seconds of training.

    The first third of its log is left out: there the run compiles, chooses kernels and fills its queue.

    Raises:
        RuntimeError: the run failed, or wrote no line.
    """
    changes: dict[str, Any] = {"global_batch_size": scale.batch, "schedule.epochs": 2, "schedule.warmup_epochs": 0}
    changes |= {"log.every_steps": 2 if scale.dry else 8, "checkpoint.every_epochs": 2, "log.pictures": 2}
    changes |= {"channels_last": recipe.endswith("resnet50")}
    chosen = settings_of(scale, **changes) if scale.dry else QUIET | changes
    process = start(recipe, pattern, folder, scale, laptop=scale.dry, num_workers=workers, **chosen)
    process.join(longest)
    if process.is_alive():
        process.terminate()  # the run ends after its step
        process.join()
    elif process.exitcode:
        raise RuntimeError(f"the run of {recipe} failed: {said(folder)}")
    rows = [json.loads(line) for line in lines_of(folder)]
    if not rows:
        raise RuntimeError(f"the run of {recipe} wrote no line in {longest:.0f} s: {said(folder)}")
    late = rows[len(rows) // 3 :]
    return {
        "steps": rows[-1]["step"],
        "images_per_s": statistics.median(row["images_per_second"] for row in late),
        "waiting": statistics.median(row["data_share"] for row in late),
        "peak_gb": late[-1].get("gpu_memory_gb"),
    }

"""Plain facts about a run for summary.json and the report: the machine, the versions, the classes of the data."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import mmengine
import numpy as np
import timm
import torch
from mmengine.dist import is_main_process

import a2mim
from a2mim.data.sizes import sizes_of

_MOST_CLASSES = 50  # that are named one by one


def starting_facts(run, processes: int) -> dict:
    """What summary.json says of a run before its first step, beside what was asked for."""
    return {"data": data_facts(run), **run_facts(run, processes)}


def data_facts(run) -> dict:
    """What is known of the training images before an epoch; sizes are those of a few, on the first process alone."""
    dataset = run.task.train_set
    sizes = sizes_of(dataset) if is_main_process() else {}
    return {
        "source": dataset.describe(),
        "images": dataset.images,
        "fingerprint": dataset.fingerprint,
        "class_counts": class_counts(dataset),
        **({"sizes": sizes} if sizes else {}),
        "left_out_each_epoch": run.loader.left_out,
    }


def run_facts(run, processes: int) -> dict:
    """Where and how a run is computed, and where its settings come from."""
    return {
        "device": str(run.device),
        "processes": processes,
        "machine": machine(run.device),
        "versions": versions(),
        "seed": run.settings.seed,
        "accumulate": run.settings.accumulate,
        "origins": run.origins,
        "command": run.task.command,
    }


def versions() -> dict[str, str]:
    """Name -> version of what the numbers depend on."""
    found = {m.__name__: str(m.__version__) for m in (a2mim, torch, timm, mmengine)}
    return found | {"python": platform.python_version()}


def machine(device: torch.device) -> dict[str, str]:
    """Facts of the machine, in words; a fact that the system does not report is left out."""
    found = {"processor": _processor(), "cores": str(os.cpu_count() or "")}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory"] = f"{size / 2**30:.0f} GiB"
    if device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(device)
    found["system"] = platform.platform(terse=True)
    return {key: value for key, value in found.items() if value}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def class_counts(dataset) -> dict[str, int]:
    """Name -> number of training images of each class, the largest first; {} where the data have no labels.

    Of more than 50 classes, the 25 largest and the 25 smallest are named.
    """
    if dataset.stream or not (dataset.labels >= 0).any():
        return {}
    counts = np.bincount(dataset.labels[dataset.labels >= 0])
    names = list(dataset.class_names or ())
    order = sorted((i for i, n in enumerate(counts) if n), key=lambda i: (-counts[i], i))
    if len(order) > _MOST_CLASSES:
        order = order[: _MOST_CLASSES // 2] + order[-(_MOST_CLASSES // 2) :]
    return {(str(names[i]) if i < len(names) else str(i)): int(counts[i]) for i in order}

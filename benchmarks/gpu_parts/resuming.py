"""A run that is killed and resumed, beside two undisturbed ones: with default and with deterministic kernels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from a2mim.checkpoints import read_newest

from .isolation import Findings
from .runs import lines_of, said, settings_of, start, write_images
from .scale import Scale

TRIES = 5  # a busy machine may let a short run end before the kill


def run(scale: Scale, findings: Findings) -> None:
    """Kills with SIGKILL half-way, goes on with `resume`, compares the last checkpoints bit by bit.

    With deterministic kernels, or on a CPU, the weights must be equal; with the default ones two undisturbed runs on a
    GPU may differ, and the finding says by how much.
    """
    folder = findings.path.parent / "resume"
    folder.mkdir()
    number, batch = (24, 8) if scale.dry else (256, 16)
    images = write_images(folder / "images", number)
    for deterministic in (False, True):
        what = "deterministic" if deterministic else "default"
        changes: dict[str, Any] = {"deterministic": deterministic, "global_batch_size": batch}
        changes |= {"checkpoint.every_steps": 2 if scale.dry else 4}
        changes |= {"schedule.epochs": 2 if scale.dry else 8, "schedule.warmup_epochs": 0, "log.every_steps": 1}
        words: dict[str, Any] = {"laptop": True, "num_workers": 0, **settings_of(scale, **changes)}
        findings.add(f"kill and resume, {what}", **disturbed(folder / what, images, scale, deterministic, words))


def disturbed(folder: Path, images: Path, scale: Scale, deterministic: bool, words: dict[str, Any]) -> dict:
    """The finding of one kind of kernels. words: the arguments of `a2mim.pretrain`."""
    folder.mkdir()
    whole, again = folder / "whole", folder / "again"
    for place in (whole, again):
        finish(start("a2mim_xcit", images, place, scale, **words), place)
    steps = len(lines_of(whole))
    for life in range(TRIES):
        killed = folder / f"killed_{life}"
        process = start("a2mim_xcit", images, killed, scale, **words)
        while process.is_alive() and len(lines_of(killed)) < steps // 2:
            time.sleep(0.005)
        process.kill()
        process.join()
        at = len(lines_of(killed))
        if at < steps:
            break
    finish(start("a2mim_xcit", None, killed, scale, resume=True, num_workers=0), killed)
    between, resumed = difference(whole, again), difference(whole, killed)
    exact = deterministic or scale.where.type == "cpu"
    good = at < steps and (resumed == between == 0 if exact else resumed is not None)
    return {
        "steps": steps,
        "killed_at": at,
        "run_twice_differs_by": between,
        "resumed_differs_by": resumed,
        "good": good,
    }


def finish(process: Any, folder: Path) -> None:
    """Waits for a run.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the run in {folder.name} ended with {process.exitcode}: {said(folder)}")


def difference(first: Path, second: Path) -> float | None:
    """The largest difference of a weight, relative to the largest of its tensor; 0.0 where all bits are equal. None
    where a run has no checkpoint, or its last step is another.
    """
    found = [read_newest(folder / "checkpoints") for folder in (first, second)]
    if found[0] is None or found[1] is None or found[0][0].name != found[1][0].name:
        return None
    one, other = (checkpoint["state_dict"] for _, checkpoint in (found[0], found[1]))
    if all(torch.equal(value, other[name]) for name, value in one.items()):
        return 0.0
    doubles = [(value.double(), other[name].double()) for name, value in one.items()]
    gaps = [(a - b).abs().max() / a.abs().max().clamp_min(1e-12) for a, b in doubles]
    return float(f"{max(gaps).item():.1e}")

"""Checkpoints: plain, atomic, and enough to go on as if nothing had happened.

A checkpoint holds tensors and plain values only, so it loads with `weights_only=True`. Randomness needs no saving:
masks, augmentations and dropout are functions of (seed, step).
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from pathlib import Path

import torch

FORMAT = 1
_NAME = re.compile(r"step_(\d+)\.pth")


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pth"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; what a kill left half-written has another name."""
    return sorted(p for p in Path(folder).glob("step_*.pth") if _NAME.fullmatch(p.name))


def write_checkpoint(path: Path, checkpoint: dict) -> None:
    """Atomic: the name appears when every byte is on disk, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def keep_newest(folder: Path, keep: int) -> None:
    """Deletes all but the newest `keep`; called after a save, never before."""
    for path in list_checkpoints(folder)[:-keep]:
        path.unlink()


def read_newest(folder: Path) -> tuple[Path, dict] | None:
    """The newest checkpoint that can be read, with a warning for each newer one that cannot; None where there is none
    at all.

    Raises:
        ValueError: there are checkpoints and none of them is readable.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return path, read_checkpoint(path)
        except Exception as error:  # a damaged file may fail in any way; each is reported, the last resort raises
            warnings.warn(f"{path} cannot be read ({_first_line(error)}); trying the one before it", stacklevel=2)
    if paths:
        raise ValueError(
            f"none of the {len(paths)} checkpoints in {folder} can be read; start anew in another --work-dir"
        )
    return None


def read_checkpoint(path: Path) -> dict:
    """The content of one file, every byte checked: torch.load itself does not look at the checksums that torch.save
    wrote.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"wrong checksum of {damaged}")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if checkpoint["format"] != FORMAT:
        raise ValueError(f"its format is {checkpoint['format']}, this version reads {FORMAT}")
    return checkpoint


def state_of(runner) -> dict:
    """Everything that a run needs to go on, and that an export needs to know of the encoder."""
    model = getattr(runner.model, "module", runner.model)
    checkpoint = {
        "format": FORMAT,
        "state_dict": dict(model.state_dict()),
        "optimizer": runner.optim_wrapper.state_dict(),
        "loader": runner.loader.state_dict(),
        "meta": {"step": runner.iter, **runner.meta},
    }
    runner.call_hook("before_save_checkpoint", checkpoint=checkpoint)
    return checkpoint


def restore(runner, checkpoint: dict) -> None:
    """The inverse of `state_of`, strict in every part."""
    runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)
    model = getattr(runner.model, "module", runner.model)
    try:
        model.load_state_dict(checkpoint["state_dict"])
        runner.optim_wrapper.load_state_dict(checkpoint["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the checkpoint is of another model than this recipe's: {_first_line(error)}") from error
    runner.loader.load_state_dict(checkpoint["loader"])
    runner.train_loop.seek(checkpoint["meta"]["step"])


def refuse_broken_weights(model: torch.nn.Module) -> None:
    """Raises FloatingPointError when a parameter is not finite, so that no checkpoint ever holds one."""
    parameters = dict(model.named_parameters())
    finite = torch.stack([torch.isfinite(p).all() for p in parameters.values()])
    if not finite.all():
        name = next(n for n, good in zip(parameters, finite.tolist(), strict=True) if not good)
        raise FloatingPointError(f"the weights are not finite any more, first in {name}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] if lines else type(error).__name__

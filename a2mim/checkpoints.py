"""Checkpoints as files: their names, written whole or not at all, read back with every byte checked.

Needs torch alone, so that whoever loads an encoder reads what the engine wrote and nothing else of the engine.
"""

import re
import warnings
import zipfile
from pathlib import Path

import torch

from a2mim.files import replacing

FORMAT = 1
_NAME = re.compile(r"step_(\d+)\.pth")


class NotOurs(ValueError):
    """A file of torch.save that a2mim did not write."""


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pth"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; what a kill left half-written has another name."""
    found = [(match, path) for path in Path(folder).glob("step_*.pth") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]))]


def write_checkpoint(path: Path, checkpoint: dict) -> None:
    """Atomic: the name appears when every byte is on disk, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "wb") as file:
        torch.save(checkpoint, file)


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
            problem = f"{path} cannot be read ({first_line(error)})"
        if path != paths[0]:
            warnings.warn(f"{problem}; trying the one before it", stacklevel=2)
    if paths:
        raise ValueError(
            f"none of the {len(paths)} checkpoints in {folder} can be read; train anew in another --work-dir"
            f" (the last one tried: {problem})"
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
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if found is None:
        raise NotOurs("it is not a checkpoint of a2mim")
    if found != FORMAT:
        raise ValueError(f"its format is {found}, this version reads {FORMAT}")
    return checkpoint


def first_line(error: Exception) -> str:
    """What an exception says, as one line of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] if lines else type(error).__name__

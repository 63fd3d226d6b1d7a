"""Checkpoint files: their names, atomic writes, and reads that check every byte.

This module needs only torch, so that code that loads an encoder does not import the engine.
"""

import os
import pickle
import re
import warnings
import zipfile
import zlib
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
    """Complete checkpoints, oldest first. Half-written files of a killed process have other names."""
    files = (path for path in Path(folder).glob("step_*.pth") if path.is_file())  # a pipe could be read for ever
    names = [(match, path) for path in files if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(names, key=lambda pair: int(pair[0][1]))]


def write_checkpoint(path: Path, checkpoint: dict) -> None:
    """Writes atomically: the name appears when every byte is on disk, or not at all.

    Raises:
        OSError: as the system says; torch hides it behind a RuntimeError about the end of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def keep_newest(folder: Path, keep: int) -> None:
    """Deletes all checkpoints except the newest `keep`; call it only after a save."""
    for path in list_checkpoints(folder)[:-keep]:
        path.unlink()


def read_newest(folder: Path, mapped: bool = False) -> tuple[Path, dict] | None:
    """The newest readable checkpoint, with a warning for each newer one that is not readable; None if there is none.

    Args:
        mapped: see `read_checkpoint`.

    Raises:
        ValueError: there are checkpoints, but none of them is readable.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return path, read_checkpoint(path, mapped)
        except Exception as error:  # a damaged file may fail in any way; each is reported, and the last one raises
            problem = f"{path} cannot be read ({first_line(error)})"
        if path != paths[0]:
            warnings.warn(f"{problem}; trying the one before it", stacklevel=2)
    if paths:
        raise ValueError(
            f"none of the {len(paths)} checkpoints in {folder} can be read; train again in another --work-dir"
            f" (the last one tried: {problem})"
        )
    return None


def read_checkpoint(path: Path, mapped: bool = False) -> dict:
    """The content of one file. Checks the checksums that torch.save wrote, because torch.load does not.

    Args:
        mapped: tensors are views of the file as it lies in the system's cache, where all processes of a node share it.
            So the disk is read once, for the checksums, and memory holds no further copy.

    Raises:
        NotOurs: it is a whole file, but no checkpoint of a2mim.
        ValueError: it is damaged; says how, without the path.
        OSError: it cannot be opened.
    """
    try:
        _check_records(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, MemoryError, ValueError):
        raise
    except pickle.UnpicklingError as error:  # every checksum is right: it holds more than our files hold
        raise NotOurs("it is not a checkpoint of a2mim") from error
    except Exception as error:  # damage in a zip archive or a pickle may raise anything
        raise ValueError(first_line(error)) from error
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if found is None:
        raise NotOurs("it is not a checkpoint of a2mim")
    if found != FORMAT:
        raise ValueError(f"its format is {found}, this version reads {FORMAT}")
    return checkpoint


def _check_records(path: Path) -> None:
    """Compares every record, as torch reads it, with the checksum in the archive's directory.

    Python's own reader does not see all damage: with one bit more in the directory, torch takes a tensor for an empty
    folder and loads whatever is in memory.

    Raises:
        ValueError: names the first record that differs.
    """
    with zipfile.ZipFile(path) as archive:
        checksums = {info.filename.partition("/")[2]: info.CRC for info in archive.infolist()}
    reader = torch._C.PyTorchFileReader(os.fspath(path))
    if set(reader.get_all_records()) != set(checksums):
        raise ValueError("its directory is damaged")
    for name, checksum in checksums.items():
        if zlib.crc32(reader.get_record(name)) != checksum:
            raise ValueError(f"wrong checksum of {name}")


def first_line(error: Exception) -> str:
    """The message of an exception as one line of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] if lines else type(error).__name__

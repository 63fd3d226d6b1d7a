"""The run's folder: which one it is, that it is this run's alone, and what is written there besides checkpoints."""

from __future__ import annotations

import glob
import re
import warnings
from itertools import count
from pathlib import Path
from typing import IO

from mmengine.dist import is_main_process

from a2mim.data.ownership import mark_own
from a2mim.data.reading import Reading
from a2mim.data.request import keep_private, public_request
from a2mim.engine.records import Request
from a2mim.engine.setting_groups import Settings
from a2mim.engine.stored import holds_run, read_settings, write_settings
from a2mim.files import delete_partials, delete_staging, open_lock, read_json, write_json
from a2mim.processes.group import agree, launcher

SUBFOLDERS = ("checkpoints", "reconstructions", "logs", "encoder", "classifier", "representation", "analysis")
_locks: list[IO] = []  # an open file keeps its lock until the process ends


def find_run(work_dir, name: str) -> Path:
    """The folder to resume: `work_dir`, or the newest of runs/name, runs/name-2, …"""
    if work_dir:
        if not holds_run(Path(work_dir)):
            raise FileNotFoundError(f"--resume: {work_dir} holds no run; leave out --resume to start one there")
        return Path(work_dir)
    root = Path("runs")
    runs = [p.parent for p in root.glob("*/config.py") if re.fullmatch(rf"{re.escape(name)}(-\d+)?", p.parent.name)]
    if not runs:
        raise FileNotFoundError(f"--resume: {root.absolute()} holds no run of {name}; name one with --work-dir")
    return max(runs, key=lambda folder: (folder / "config.py").stat().st_mtime)


def find_own(name: str) -> Path | None:
    """The folder that this torchrun's processes wrote to before they were restarted, of runs/name, runs/name-2, …"""
    own = launcher()
    for folder in sorted(Path("runs").glob(f"{glob.escape(name)}*")):
        if own is not None and holds_run(folder) and read_summary(folder).get("launcher") == own:
            return folder
    return None


def refuse_used(work_dir) -> None:
    """A folder that a user names for a new run must not hold another."""
    if work_dir and holds_run(Path(work_dir)):
        raise ValueError(f"{work_dir} holds a run already; add --resume to go on with it, or choose another --work-dir")


def claim(folder, name: str) -> Path:
    """Makes the folder, or the first free one of runs/name, runs/name-2, …, and locks it; the same on every process."""
    return agree(lambda: _make(Path(folder)) if folder else _make_free(Path("runs"), name))


def refuse_links(folder: Path) -> None:
    """A link in a run's folder would carry what the run writes to another place; ValueError names the first."""
    places = [folder, *(folder / name for name in SUBFOLDERS)]
    for path in (path for place in places if place.is_dir() for path in sorted(place.iterdir())):
        if path.is_symlink():
            raise ValueError(
                f"{path} is a link, and a run follows none inside its folder, so that all it writes stays there; remove"
                " the link, or choose another --work-dir (which may be a link itself)"
            )


def _make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    try:
        lock = open_lock(folder / ".lock", wait=False)
    except BlockingIOError:
        raise ValueError(f"another run is writing to {folder}; wait for it, or choose another --work-dir") from None
    _locks.append(lock)
    for place in (folder, *(folder / name for name in SUBFOLDERS)):
        delete_staging(place)
        delete_partials(place)  # left by a killed run; no other process writes here while the lock is held
    return folder


def _make_free(root: Path, name: str) -> Path:
    for number in count(1):
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return _make(folder)
    raise AssertionError("there is always a next number")


def remove_unused(folder: Path) -> None:
    """Removes the folder of a run that could not be built, if nothing but its lock was written there."""
    if is_main_process() and {path.name for path in folder.iterdir()} <= {".lock"}:
        (folder / ".lock").unlink(missing_ok=True)
        folder.rmdir()


def release() -> None:
    """Gives the folders of this process free again."""
    while _locks:
        _locks.pop().close()


def remember(
    folder: Path, settings: Settings, request: Request, changes: list[dict], facts: dict | None = None
) -> None:
    """Writes what `--resume` needs: every setting in force, as data and as a recipe, and what was asked for.

    facts: further entries in summary.json of a run that has just begun.
    """
    if is_main_process():
        keep_private(folder, request.given())
        mark_own(folder, request.given())
        write_json(
            folder / "summary.json",
            {
                "status": "running",
                "asked": public_request(request.given()),
                "changes": changes,
                "launcher": launcher(),
                **(facts or {}),
            },
        )
        write_settings(folder, settings, changes)


def reading_of_run(source) -> Reading | None:
    """How the encoder's run read its images. source: the run folder, or a checkpoint or export in it; else None."""
    place = Path(source)
    for folder in (place, *place.absolute().parents[:2]) if place.exists() else ():
        if (folder / "summary.json").is_file() and holds_run(folder):
            data = read_settings(folder).get("data", {})
            data = data if isinstance(data, dict) else {}
            others = {key: data.get(key) for key in ("bits", "value_range", "nodata", "fill")}
            return Reading(exif=bool(data.get("exif")), **others)
    return None


def read_summary(folder: Path) -> dict:
    """The run's summary.json; {} where it cannot be read, with a warning if it is damaged."""
    path = folder / "summary.json"
    try:
        summary = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} is damaged and left unread: {error}", stacklevel=2)
        return {}
    return summary if isinstance(summary, dict) else {}

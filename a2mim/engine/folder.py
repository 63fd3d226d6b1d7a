"""The run's folder: which one it is, and what is written there besides checkpoints and pictures."""

from __future__ import annotations

import json
import os
import pprint
import re
from itertools import count
from pathlib import Path

import torch
from mmengine.dist import is_main_process


def choose_run_dir(work_dir, name: str, resume: bool) -> Path:
    """The run's folder, the same on every process; never one that would overwrite another run. Nothing is created
    yet.
    """
    choice = None
    if is_main_process():  # alone: a process that looks later may see what this one has begun to write
        try:
            choice = named_run_dir(Path(work_dir), resume) if work_dir else default_run_dir(Path("runs"), name, resume)
        except (ValueError, FileNotFoundError) as error:
            choice = error
    if torch.distributed.is_initialized():
        shared = [choice]
        torch.distributed.broadcast_object_list(shared, src=0)
        choice = shared[0]
    if isinstance(choice, Exception):
        raise choice
    return choice


def named_run_dir(folder: Path, resume: bool) -> Path:
    holds_run = (folder / "config.py").exists()
    if resume and not holds_run:
        raise FileNotFoundError(f"--resume: {folder} holds no run; leave out --resume to start one there")
    if holds_run and not resume:
        raise ValueError(f"{folder} holds a run already; add --resume to go on with it, or choose another --work-dir")
    return folder


def default_run_dir(root: Path, name: str, resume: bool) -> Path:
    """The first free one of root/name, root/name-2, …; to resume, the newest of them."""
    if not resume:
        return next(p for n in count(1) if not (p := root / (name if n == 1 else f"{name}-{n}")).exists())
    runs = [
        p.parent for p in root.glob(f"{name}*/config.py") if re.fullmatch(rf"{re.escape(name)}(-\d+)?", p.parent.name)
    ]
    if not runs:
        raise FileNotFoundError(f"--resume: {root.absolute()} holds no run of {name}; name one with --work-dir")
    return max(runs, key=lambda folder: (folder / "config.py").stat().st_mtime)


def write_config(run_dir: Path, settings: dict) -> None:
    """Every setting in force, as a recipe that can be run again."""
    if is_main_process():
        run_dir.mkdir(parents=True, exist_ok=True)
        lines = [f"{key} = {pprint.pformat(value, sort_dicts=False)}\n" for key, value in settings.items()]
        (run_dir / "config.py").write_text("".join(lines))


def write_json(path: Path, content: dict) -> None:
    """Atomic."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)

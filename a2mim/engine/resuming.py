"""Where a run goes on, from what its folder and its checkpoint say; both are data, and neither is trusted unread."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from a2mim.checkpoints import read_newest
from a2mim.data.request import public_request, recall
from a2mim.engine import folder
from a2mim.engine.config import differences, load_config, settle
from a2mim.engine.records import Launch, Request, ResumePoint
from a2mim.engine.report import say
from a2mim.engine.setting_groups import Settings
from a2mim.engine.stored import read_log, read_settings


@dataclass(frozen=True)
class Resumed:
    """What a resumed run is made from.

    Args:
        folder: of the run.
        point: its newest readable checkpoint; None: it was killed before the first one was due.
        request: what was asked for, with what is asked for now on top.
        settings: those in force.
        changed: sentences about what differs from the checkpoint.
        changes: what earlier resumes changed, as summary.json keeps it.
        origins: dotted setting -> where it comes from.
    """

    folder: Path
    point: ResumePoint | None
    request: Request
    settings: Any
    changed: list[str]
    changes: list[dict]
    origins: dict[str, str]


def take_up(kind: type[Settings], request: Request, launch: Launch) -> Resumed:
    """Reads a run's folder.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: its checkpoints are lost or not readable; its settings are not readable.
    """
    where = folder.find_run(launch.work_dir, request.name)
    found = read_newest(where / "checkpoints")
    point = ResumePoint(*found) if found else None
    saved, summary = _saved(point.meta if point else {}), folder.read_summary(where)
    asked = recall(where) or saved.get("request") or {}
    filled, changed = request.filled_from(asked), []
    if filled.source != asked.get("source", filled.source):
        changed.append(f"not the source: the run has begun, from {asked['source']}")
        filled = replace(filled, source=asked["source"])
    stored = _stored(where, saved)
    settings = settle(stored, where, launch.overrides, False, kind)
    if point is None:
        refuse_lost_checkpoints(where, settings)
    before = settle(saved.get("settings") or stored, where, None, False, kind)
    changed += differences(before.model_dump(), settings.model_dump())
    changed += _moved_data(saved.get("request"), filled)
    import_again(filled.config, settings, kind)
    origins = dict(summary.get("origins") or {}) | dict.fromkeys(launch.overrides, "resume")
    return Resumed(where, point, filled, settings, changed, list(summary.get("changes") or []), origins)


def refuse_lost_checkpoints(where: Path, settings: Settings) -> None:
    """Lets a run start again at step 0 only if it was killed before its first checkpoint was due."""
    lines = read_log(where / "log.jsonl")[0]
    step, epoch = (max([0, *(line.get(key, 0) for line in lines)]) for key in ("step", "epoch"))
    every = settings.checkpoint
    if step >= every.every_steps if every.every_steps else epoch >= every.every_epochs:
        raise ValueError(
            f"{where} has logged {step} steps and holds no checkpoint, so there is no step to go on from; to start"
            " over, delete the folder and leave out --resume, or choose another --work-dir"
        )
    say(f"{where} was ended before its first checkpoint: it starts again at step 0")


def _saved(meta: dict) -> dict:
    """The settings and the request that the checkpoint carries; a checkpoint of an older version carries none."""
    return {key: json.loads(meta[key]) for key in ("settings", "request") if isinstance(meta.get(key), str)}


def _stored(where: Path, saved: dict) -> dict:
    """The run's settings.json, or the checkpoint's copy where that file cannot be read."""
    try:
        return read_settings(where)
    except (OSError, ValueError) as error:
        if "settings" not in saved:
            raise
        warnings.warn(f"{error}; the checkpoint's copy of the settings is used", stacklevel=2)
        return saved["settings"]


def _moved_data(before: dict | None, now: Request) -> list[str]:
    """Sentences about sources that are named otherwise than when the checkpoint was saved."""
    if not before:
        return []
    named = public_request(now.given())
    keys = [key for key in ("data", "test_data") if key in before and before[key] != named[key]]
    return [f"{key}: {before[key]!r} -> {named[key]!r}" for key in keys]


def import_again(recipe: str, settings: Settings, kind: type[Settings]) -> None:
    """Imports a resumed run's own parts: those that the recipe on the command line names, never those of the folder."""
    if settings.custom_imports is None:
        return
    try:
        typed = load_config(recipe, kind=kind).custom_imports
    except FileNotFoundError:
        typed = None
    if typed != settings.custom_imports:
        say(
            f"note: the run imports {settings.custom_imports}; a run's folder imports nothing, so name the recipe that"
            " does on the command line"
        )

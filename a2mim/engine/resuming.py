"""Finds the point to resume from in a run's folder and checkpoint. Both are untrusted data and are checked first."""

from __future__ import annotations

import json
import os
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from a2mim.checkpoints import read_checkpoint, read_newest
from a2mim.data import ImageDataset
from a2mim.data.ownership import refuse_foreign_addresses
from a2mim.data.request import public_request, recall
from a2mim.engine import folder
from a2mim.engine.config import differences, load_config, settle
from a2mim.engine.recalled import Typed, refuse_code
from a2mim.engine.records import Launch, Request, ResumePoint
from a2mim.engine.report import say
from a2mim.engine.saved_form import check_form
from a2mim.engine.setting_groups import Settings
from a2mim.engine.stored import holds_run, read_log, read_settings
from a2mim.processes.group import agree, restarted
from a2mim.text import shortened
from a2mim.wiring.timm_models import is_registered

STALE = 60  # seconds, at most, until a network file system shows what another node has written


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


def find_resumed(launch: Launch, request: Request) -> Path | None:
    """The folder of the run to go on with, the same on every process; None where a new run is to start.

    Raises:
        FileNotFoundError: there is no run, and none may start.
        ValueError: "auto" without a folder.
    """
    return agree(lambda: _find(launch, request))


def _find(launch: Launch, request: Request) -> Path | None:
    if not launch.may_start:
        return folder.find_run(launch.work_dir, request.name)
    if launch.work_dir is None:
        if not restarted():
            raise ValueError("--resume auto needs --work-dir: the folder to go on with, or to start in")
        return folder.find_own(request.name)
    where = Path(launch.work_dir)
    return where if holds_run(where) else None


def take_up(kind: type[Settings], request: Request, launch: Launch, where: Path) -> Resumed:
    """Reads a run's folder.

    Raises:
        ValueError: its checkpoints are lost or not readable; its settings are not readable, or name code that the user
            did not type, or addresses of data of a run that another account began; with "auto", it is the run of
            another recipe or of other data.
    """
    point = newest_of_all(where / "checkpoints")
    saved, summary = _saved(point), folder.read_summary(where)
    asked = _recalled(where, saved)
    agree(lambda: refuse_foreign_addresses(where, asked, request.given()))
    filled, changed = request.filled_from(asked), []
    if launch.may_start and not launch.next_epoch:
        refuse_other_run(where, saved.get("settings") or _stored(where, saved), asked, request, launch, kind)
    if filled.source != asked.get("source", filled.source):
        changed.append(f"not the source: the run has begun, from {asked['source']}")
        filled = replace(filled, source=asked["source"])
    stored = _stored(where, saved)
    before = _settled(saved.get("settings") or stored, where, kind)
    _settled(stored, where, kind)
    options = without_settled(launch.overrides, before.accumulate)
    settings = settle(stored, where, options, False, kind)
    if point is None:
        refuse_lost_checkpoints(where, settings, summary.get("status") == "running")
    changed += differences(before.model_dump(), settings.model_dump())
    changed += _moved_data(saved.get("request"), filled)
    import_again(filled.config, settings, kind)
    typed = Typed(request.config, options, request.source)
    refuse_code(settings, filled.source if point is None or is_own_network(point.meta) else None, where, typed)
    origins = dict(summary.get("origins") or {}) | dict.fromkeys(options, "resume")
    return Resumed(where, point, filled, settings, changed, list(summary.get("changes") or []), origins)


def without_settled(options: dict[str, Any], accumulate: int | str) -> dict[str, Any]:
    """The options without accumulate="auto": a run keeps the number that it began with, until another one is typed."""
    settled = options.get("accumulate") == "auto" != accumulate
    return {key: value for key, value in options.items() if not (settled and key == "accumulate")}


def is_own_network(meta: dict) -> bool:
    """Whether a checkpoint of refinement names its encoder by code to import, as only the user may."""
    encoder = meta.get("encoder")
    return "sizes" in meta and isinstance(encoder, dict) and not is_registered(encoder.get("name"))


def _settled(stored: dict, where: Path, kind: type[Settings]) -> Settings:
    """The settings of a folder, as it says them."""
    try:
        return settle(stored, where, None, False, kind)
    except ValueError as error:
        said = str(error)
        raise ValueError(said if str(where) in said else f"{where} holds settings that cannot be: {said}") from error


def newest_of_all(checkpoints: Path) -> ResumePoint | None:
    """The newest checkpoint that the first process can read, on every process; None where there is none."""
    read: list[tuple[Path, dict]] = []

    def choose() -> Path | None:
        newest = read_newest(checkpoints, mapped=True)
        read.extend([newest] if newest else [])
        return newest[0] if newest else None

    path = agree(choose)
    if path is None:
        return None
    checkpoint = read[0][1] if read else _read_late(path)
    check_form(path, checkpoint)
    return ResumePoint(path, checkpoint)


def _read_late(path: Path) -> dict:
    """Reads a file that another process sees; a network file system may show it here some seconds later."""
    for _ in range(STALE):
        if path.name in os.listdir(path.parent):  # listing makes NFS ask again
            break
        time.sleep(1)
    try:
        return read_checkpoint(path, mapped=True)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); see that every machine reads the same files") from error


def refuse_other_run(
    where: Path, stored: dict, asked: dict, request: Request, launch: Launch, kind: type[Settings]
) -> None:
    """ValueError where the command line means another run than the folder holds; what it leaves open is the same."""
    laptop = request.data is None if request.laptop is None else request.laptop
    wanted = load_config(launch.recipe_of(request), launch.overrides, laptop, kind).model_dump()
    before = settle(stored, where, None, False, kind).model_dump()
    if wanted["accumulate"] == "auto":
        wanted["accumulate"] = before["accumulate"]
    others = differences(_known(before, wanted), with_raised_epochs(wanted, before))
    given = public_request(request.given())
    others += [
        f"{key}: {asked[key]!r} -> {given[key]!r}"
        for key in ("data", "test_data", "source")
        if given.get(key) is not None and public_request({key: asked.get(key)})[key] != given[key]
    ]
    if others:
        raise ValueError(
            f"--resume auto: {where} holds another run than this command line means ({'; '.join(others[:3])}); choose"
            " another --work-dir, or say --resume to go on with these changes"
        )


def _known(before: dict, wanted: dict) -> dict:
    """`before`, but None where `wanted` is None: the data and the source have filled that in."""
    return {
        key: _known(value, wanted[key])
        if isinstance(value, dict) and isinstance(wanted.get(key), dict)
        else None
        if wanted.get(key) is None
        else value
        for key, value in before.items()
    }


def with_raised_epochs(wanted: dict, before: dict) -> dict:
    """`wanted` with the epochs of `before`, where `schedule.least_steps` has raised them for a small set."""
    schedule = wanted["schedule"]
    if not schedule.get("least_steps"):
        return wanted
    epochs = max(schedule["epochs"], before["schedule"]["epochs"])
    return wanted | {"schedule": schedule | {"epochs": epochs}}


def check_test_set(meta: dict, test_set: ImageDataset | None, named: bool) -> list[str]:
    """Sentences about test images that are others than when the checkpoint was saved.

    Args:
        named: the user names data now, or gives up what was begun with the old ones.

    Raises:
        ValueError: they are others, and nobody has named them.
    """
    before, now = meta.get("test_fingerprint"), test_set and test_set.fingerprint
    if before is None or before == now:
        return []
    if not named:
        raise ValueError(
            "the test images are others than when the run was saved, so its results cannot be compared: resume with"
            " what they were, or name them with --test-data"
        )
    return [f"test images: {before} -> {now}"]


def _recalled(where: Path, saved: dict) -> dict:
    """What the run was asked for. Where summary.json and the checkpoint disagree, the checkpoint is right: its position
    belongs to its data.
    """
    recalled, kept = recall(where), saved.get("request") or {}
    public = public_request(recalled)
    others = [key for key in kept if recalled and public.get(key) != kept[key]]
    if others:
        said = "; ".join(f"{key}: {public.get(key)!r} there, {kept[key]!r} in the checkpoint" for key in others)
        warnings.warn(
            f"{where / 'summary.json'} does not say what the checkpoint says, which is taken: {said}", stacklevel=2
        )
    return (recalled or kept) | {key: kept[key] for key in others}


def refuse_lost_checkpoints(where: Path, settings: Settings, killed: bool) -> None:
    """Lets a run start again at step 0 only if it ended before its first checkpoint was written.

    Args:
        killed: it said no last word, so it may have ended while it wrote the checkpoint of its last step.
    """
    lines = read_log(where / "log.jsonl")[0]
    step, epoch = (max([0, *(line.get(key, 0) for line in lines)]) for key in ("step", "epoch"))
    every = settings.checkpoint
    done, due = (step, every.every_steps) if every.every_steps else (epoch, every.every_epochs)
    if done > due or (done == due and not killed):
        raise ValueError(
            f"{where} has logged {step} steps and holds no checkpoint, so there is no step to go on from; to start"
            " over, delete the folder and leave out --resume, or choose another --work-dir"
        )
    say(f"{where} was ended before its first checkpoint: it starts again at step 0")


def _saved(point: ResumePoint | None) -> dict:
    """The settings and the request that the checkpoint carries; a checkpoint of an older version carries none."""
    meta = point.meta if point else {}
    keys = [key for key in ("settings", "request") if isinstance(meta.get(key), str)]
    return {key: _dict_of(meta[key], key, point.path) for key in keys if point}


def _dict_of(text: str, what: str, path: Path) -> dict:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {shortened(text)} in place of the run's {what}: it cannot be resumed")
    return content


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
    """Sentences about sources whose names have changed since the checkpoint was saved."""
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

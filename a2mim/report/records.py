"""A run's folder as one record, read as data: nothing in it is executed, and damaged parts are counted, not fatal.

Reading needs neither torch nor timm, so a report can be made on a machine that has neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from a2mim import files
from a2mim.report.summary import cleaned, is_number, is_pair, is_step

_ON_THE_WAY = ("knn_top1", "effective_rank", "feature_std")  # keys of lines about the features
_STEP = re.compile(r"step_(\d+)\.png")


@dataclass(frozen=True)
class Difference:
    """One probe before and after pre-training, on the same test images.

    Args:
        name: of the probe, for example "linear probe".
        before, after: accuracy in percent, each with its 95 % interval.
        points, low, high: after minus before with the paired 95 % interval, in points; None where it was not measured.
        word: "gain", "loss" or "none": what the test images can show.
    """

    name: str
    before: float
    before_interval: tuple[float, float]
    after: float
    after_interval: tuple[float, float]
    points: float | None = None
    low: float | None = None
    high: float | None = None
    word: str = "none"


@dataclass(frozen=True)
class Picture:
    """One sheet of reconstructions: rows are images, columns are panels.

    Args:
        step: of the run.
        path: a PNG.
        layout: of this sheet: titles of the columns, the size of a tile, the gaps and the header, in pixels; None: not
            known (an older run).
    """

    step: int
    path: Path
    layout: dict[str, Any] | None


@dataclass(frozen=True)
class RunRecord:
    """All that a report says of one run.

    Args:
        folder: of the run.
        status: "finished", "stopped" (by a signal, saved), "running" or "killed".
        summary: of summary.json; an empty dictionary where there is none.
        settings: every setting in force, nested; None: the run is older than settings.json.
        lines: of log.jsonl that hold a loss, in order of steps.
        online: lines of the log that hold a k-NN on the way, or numbers of the features.
        events: lines of the log that hold neither, such as resumes and warnings of the health checks.
        bad_lines: how many lines of the log could not be read.
        differences: what the judges say before and after.
        results: of results.json: each has the answer to every test image.
        segmented: of results.json: each has pictures of predicted masks.
        pictures: sheets of reconstructions, oldest first.
        receipts: of exports inside the run's folder.
        analyses: results of `a2mim analyze`, by name.
        representation: what the run drew of its features, or None.
    """

    folder: Path
    status: str
    summary: dict[str, Any]
    settings: dict[str, Any] | None
    lines: list[dict[str, Any]]
    online: list[dict[str, Any]]
    events: list[dict[str, Any]]
    bad_lines: int
    differences: list[Difference]
    pictures: list[Picture]
    receipts: list[dict[str, Any]]
    analyses: dict[str, dict[str, Any]] = field(default_factory=dict)
    representation: dict[str, Any] | None = None
    results: list[dict[str, Any]] = field(default_factory=list)
    segmented: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def command(self) -> str:
        """ "pretrain", "finetune" or "refine"."""
        told = self.summary.get("command") or ("finetune" if (self.summary.get("asked") or {}).get("source") else "")
        return str(told or "pretrain")

    @property
    def resumed(self) -> bool:
        """Whether the run was interrupted and went on; summary.json then knows the time of its last part only."""
        return any(event.get("event") == "resume" for event in self.events)

    @property
    def training_seconds(self) -> float | None:
        """Time spent training, from the speeds in the log; None where they do not tell."""
        batch, total, before = self.setting("global_batch_size"), 0.0, 0
        for line in self.lines:
            speed = line.get("images_per_second")
            if not is_number(batch) or not is_number(speed) or speed <= 0:
                return None
            total, before = total + (line["step"] - before) * batch / speed, line["step"]
        return total or None

    @property
    def steps(self) -> tuple[int, int | None]:
        """Steps taken, and of how many."""
        last = self.lines[-1]["step"] if self.lines else 0
        return self.summary.get("steps") or last, self.summary.get("of_steps")

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A setting by its dotted name, or `default` where the run did not keep it."""
        place: Any = self.settings or {}
        for name in dotted.split("."):
            if not isinstance(place, dict) or name not in place:
                return default
            place = place[name]
        return place


def read_run(folder: str | Path, running: bool = False) -> RunRecord:
    """Reads a run's folder.

    Args:
        folder: of a run, or a copy of one.
        running: the caller is the run itself; without it, a run that did not finish counts as killed.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; give the folder of a run, such as runs/a2mim_xcit")
    if not any((folder / name).is_file() for name in ("summary.json", "log.jsonl", "settings.json")):
        raise FileNotFoundError(f"{folder} holds no run: it has neither summary.json nor log.jsonl")
    summary = cleaned(read_json(folder / "summary.json") or {})
    lines, bad = _log(folder / "log.jsonl")
    status = str(summary.get("status", "running"))
    if status == "running" and not running:
        status = "killed"
    judged = _read(folder / "results.json")
    results = [one for one in judged if isinstance(one, dict)] if isinstance(judged, list) else []
    return RunRecord(
        folder=folder,
        status=status,
        summary=summary,
        settings=read_json(folder / "settings.json"),
        lines=[line for line in lines if is_number(line.get("loss"))],
        online=[line for line in lines if any(is_number(line.get(key)) for key in _ON_THE_WAY)],
        events=[line for line in lines if "says" in line],
        bad_lines=bad,
        differences=list(_differences(summary.get("judged"))),
        pictures=_pictures(folder / "reconstructions"),
        receipts=[
            found
            for pattern in ("*/receipt.json", "export/*/receipt.json")
            for path in sorted(folder.glob(pattern))
            if (found := read_json(path))
        ],
        analyses={path.stem: found for path in sorted(folder.glob("analysis/*.json")) if (found := read_json(path))},
        representation=read_json(folder / "representation" / "representation.json"),
        results=[one for one in results if _has_answers(one)],
        segmented=[one for one in results if isinstance(one.get("pictures"), list) and one["pictures"]],
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none that can be read."""
    found = _read(path)
    return found if isinstance(found, dict) else None


def _read(path: Path) -> Any:
    try:
        return files.read_json(path)
    except (OSError, ValueError):
        return None


def _has_answers(result: dict[str, Any]) -> bool:
    """Whether it says of every test image "1" right, "0" wrong or "-" not judged."""
    if not isinstance(result.get("constants"), dict):
        return False
    correct = result.get("correct")
    return isinstance(correct, str) and bool(correct) and not set(correct) - set("01-")


def _log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(lines that hold a step, how many others there are)."""
    lines, bad = [], 0
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        text = ""
    for row in text.splitlines():
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and is_step(line.get("step")):
            lines.append(line)
        else:
            bad += 1
    return lines, bad


def _differences(judged: Any) -> Iterator[Difference]:
    """One for each probe that the run judged before and after."""
    if not isinstance(judged, dict):
        return
    told = judged.get("differences")
    known = [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []
    changes = {str(change.get("name")): change for change in known}
    for key, name in (("linear", "linear probe"), ("attentive", "attentive probe"), ("knn", "k-NN")):
        try:
            before, after = (judged[when][key] for when in ("before", "after"))
            found = Difference(name, before["top1"], tuple(before["interval"]), after["top1"], tuple(after["interval"]))
        except (KeyError, TypeError):
            continue
        if not all(is_number(side["top1"]) and is_pair(list(side["interval"])) for side in (before, after)):
            continue
        change = changes.get(name, {})
        numbers = {k: change[k] for k in ("points", "low", "high") if is_number(change.get(k))}
        numbers = numbers if len(numbers) == 3 else {}
        yield Difference(**(vars(found) | numbers | {"word": str(change.get("word", "none"))}))


def _pictures(folder: Path) -> list[Picture]:
    """Each sheet with the layout of its own step; layout.json of an older run has one for all."""
    newest = read_json(folder / "layout.json")
    steps = newest.get("steps") if newest else None
    steps = steps if isinstance(steps, dict) else {}
    found = [(int(match[1]), path) for path in folder.glob("step_*.png") if (match := _STEP.fullmatch(path.name))]
    return [Picture(step, path, steps.get(str(step), newest)) for step, path in sorted(found)]

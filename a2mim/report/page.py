"""The page: what a template needs, and the file. Everything that comes from a run is escaped by the template engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from a2mim.files import write_text
from a2mim.report.analyses import analysis_plots, feature_plots
from a2mim.report.curves import curves, on_the_way
from a2mim.report.figures import Plot, svg
from a2mim.report.pairs import comparisons
from a2mim.report.pictures import (
    MOST_BESIDE,
    MOST_SHEETS,
    Tile,
    inline,
    open_picture,
    reconstruction_rows,
    whole_sheets,
)
from a2mim.report.records import RunRecord, read_run
from a2mim.report.segmented import Segmented, segmented
from a2mim.report.tables import data_rows, differing, export_rows, setting_rows, where_and_how
from a2mim.report.verdicts import Verdict, headline, verdicts
from a2mim.text import one_line

MOST_BYTES = 5 << 20
_MOST_ROWS, _MOST_TILES = 12, 12  # of a part about the features
_BRIEF_ROWS = 3  # of reconstructions, in a notebook


@dataclass(frozen=True)
class Drawn:
    """A figure on the page: its title, its SVG, its message."""

    title: str
    svg: Markup
    message: str


@dataclass(frozen=True)
class RunSection:
    """What the template shows of one run."""

    run: RunRecord
    headline: str
    verdicts: list[Verdict]
    reconstructions: list[list[Tile]]
    sheets: list[Tile]
    representation: list[tuple[str, str, list[list[Tile]]]]
    segmented: list[Segmented]
    data: list[tuple[str, str]]
    exports: list[dict[str, str]]
    settings: list[tuple[str, str, str]]
    machine: list[tuple[str, str]]
    commands: list[str]
    notes: list[str]


def write_report(folders: Sequence[str | Path], out: str | Path, running: bool = False) -> Path:
    """Writes the report of one run, or of several side by side.

    Args:
        folders: of the runs.
        out: the HTML file; it is replaced as a whole.
        running: the caller is the run itself.

    Raises:
        FileNotFoundError: a folder holds no run.

    Examples:
        >>> a2mim.write_report(["runs/tiny"], "report.html").name
        'report.html'
    """
    runs = [read_run(folder, running) for folder in folders]
    if not runs:
        raise ValueError("a report needs the folder of at least one run")
    write_text(out, render(runs))
    return Path(out)


def render(runs: Sequence[RunRecord], compared: Sequence[str] | None = None) -> str:
    """The page as text. compared: what `comparisons` says of the runs, where the caller knows it already."""
    return (
        _templates()
        .get_template("report.html")
        .render(
            title=" and ".join(run.name for run in runs),
            style=Markup(_templates().get_template("style.css").render()),
            sections=[_section(run, len(runs)) for run in runs],
            curves=[_drawn(plot) for plot in curves(runs)],
            features=[_drawn(plot) for plot in (*on_the_way(runs), *feature_plots(runs))],
            analyses=[_drawn(plot) for plot in analysis_plots(runs)],
            differing=differing(runs),
            compared=comparisons(runs) if compared is None else compared,
            pairs=_pairs(runs),
        )
    )


def brief(folder: str | Path) -> str:
    """The verdict, a few pictures and the loss of one run, as a piece of HTML for a notebook; "" without its folder."""
    try:
        run = read_run(folder)
    except FileNotFoundError:
        return ""
    return (
        _templates()
        .get_template("brief.html")
        .render(
            headline=headline(run),
            verdicts=verdicts(run),
            notes=_notes(run),
            reconstructions=reconstruction_rows(run.pictures)[:_BRIEF_ROWS],
            curves=[_drawn(plot) for plot in curves([run])[:1]],
            report=str(Path(folder) / "report.html"),
        )
    )


@cache
def _templates() -> Environment:
    """The templates, which are read and compiled once a process: a run writes its page again and again."""
    return Environment(
        loader=PackageLoader("a2mim.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )


def _printable(value: Any) -> Any:
    """Text on one printable line: the commands on the page are copied into terminals. Markup of ours stays."""
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _drawn(plot: Plot) -> Drawn:
    return Drawn(plot.title, Markup(svg(plot)), plot.message)


def _section(run: RunRecord, runs: int = 1) -> RunSection:
    """What the page says of one of so many runs; several have fewer pictures each."""
    rows = reconstruction_rows(run.pictures, MOST_SHEETS if runs == 1 else MOST_BESIDE)
    machine, commands = where_and_how(run)
    return RunSection(
        run=run,
        headline=headline(run),
        verdicts=verdicts(run),
        reconstructions=rows,
        sheets=[] if rows else whole_sheets(run.pictures),
        representation=_representation(run),
        segmented=segmented(run, runs),
        data=data_rows(run),
        exports=export_rows(run),
        settings=setting_rows(run),
        machine=machine,
        commands=commands,
        notes=_notes(run),
    )


def _representation(run: RunRecord) -> list[tuple[str, str, list[list[Tile]]]]:
    """(title, explanation, rows of tiles) of the pictures that the run drew of its features."""
    found = []
    for part in _list((run.representation or {}).get("parts")):
        if not isinstance(part, dict):
            continue
        rows = [_row(run.folder / "representation", row) for row in _list(part.get("rows"))[:_MOST_ROWS]]
        rows = [row for row in rows if row]
        if rows:
            found.append((str(part.get("title", "")), str(part.get("says", "")), rows))
    return found


def _row(folder: Path, entries: Any) -> list[Tile]:
    """The pictures of a row; a file outside the folder is none of them."""
    tiles = []
    for entry in _list(entries)[:_MOST_TILES]:
        name = str(entry.get("file", "")) if isinstance(entry, dict) else ""
        image = open_picture(folder / name) if name and Path(name).name == name else None
        if image is not None:
            tiles.append(inline(image, str(entry.get("text", "")), str(entry.get("caption", ""))))
    return tiles


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _notes(run: RunRecord) -> list[str]:
    """What the run's log says beside its numbers: health checks, resumes; and what could not be read of it."""
    said = [str(event["says"]) for event in run.events if event.get("says")]
    if run.bad_lines:
        said.append(f"{run.bad_lines} lines of log.jsonl could not be read and are left out.")
    return said


def _pairs(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Rows of the table of probes: one a probe, with a cell for each run."""
    names = list(dict.fromkeys(d.name for run in runs for d in run.differences))
    return [
        {"name": name, "cells": [next((d for d in run.differences if d.name == name), None) for run in runs]}
        for name in names
    ]


__all__ = ["MOST_BYTES", "brief", "render", "write_report"]

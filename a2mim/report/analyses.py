"""Figures of the analyses that were run (`a2mim analyze`): the untrained network stands beside the trained one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from a2mim.report.figures import Line, Plot
from a2mim.report.records import RunRecord


def analysis_plots(runs: Sequence[RunRecord]) -> list[Plot]:
    """One plot for each figure that an analysis wrote.

    A file of an analysis holds "figures": each with "title", "x_label", "y_label", "message" and "lines", and each
    line with "label", "x", "y" and, where there is one, an interval "low" and "high". "log": true asks for a
    logarithmic axis.
    """
    return [plot for run in runs for result in run.analyses.values() for plot in plots_of(result, _name(runs, run))]


def feature_plots(runs: Sequence[RunRecord]) -> list[Plot]:
    """The figures that each run drew of its features; the format is that of an analysis."""
    return [plot for run in runs for plot in plots_of(run.representation or {}, _name(runs, run))]


def _name(runs: Sequence[RunRecord], run: RunRecord) -> str:
    return run.name if len(runs) > 1 else ""


def plots_of(result: dict[str, Any], name: str = "") -> list[Plot]:
    """The figures of one file; those that lack something are left out. name: of the run, in front of each title."""
    figures = result.get("figures")
    found = [_plot(figure, name) for figure in figures] if isinstance(figures, list) else []
    return [plot for plot in found if plot]


def _plot(figure: Any, name: str) -> Plot | None:
    """None where the file does not hold what a figure needs."""
    try:
        lines = [
            Line(
                str(line["label"]), _numbers(line["x"]), _numbers(line["y"]), *(_band(line, k) for k in ("low", "high"))
            )
            for line in figure["lines"]
        ]
        title = f"{name}: {figure['title']}" if name else str(figure["title"])
        labels = str(figure["x_label"]), str(figure["y_label"])
        ok = bool(lines) and all(len(line.x) == len(line.y) > 0 for line in lines)
        return Plot(title, *labels, lines, str(figure["message"]), log=bool(figure.get("log"))) if ok else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _band(line: dict, key: str) -> list[float] | None:
    band = line.get(key)
    return _numbers(band) if band is not None and len(band) == len(line["x"]) else None


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values]

"""Figures of the analyses that were run (`a2mim analyze`): the untrained network stands beside the trained one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from a2mim.report.figures import Line, Plot
from a2mim.report.records import RunRecord


def analysis_plots(runs: Sequence[RunRecord]) -> list[Plot]:
    """One plot for each figure that an analysis wrote.

    A file of an analysis holds "figures": each with "title", "x_label", "y_label", "message" and "lines", and each
    line with "label", "x", "y" and, where there is one, an interval "low" and "high".
    """
    plots = []
    for run in runs:
        for result in run.analyses.values():
            for figure in result.get("figures", ()):
                plot = _plot(figure, run.name if len(runs) > 1 else "")
                plots += [plot] if plot else []
    return plots


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
        return Plot(title, *labels, lines, str(figure["message"])) if ok else None
    except (KeyError, TypeError, ValueError):
        return None


def _band(line: dict, key: str) -> list[float] | None:
    band = line.get(key)
    return _numbers(band) if band is not None and len(band) == len(line["x"]) else None


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values]

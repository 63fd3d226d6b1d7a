"""Figures of the analyses as files of their own, PNG and SVG, for papers and slides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

from a2mim.files import partial_path
from a2mim.report.analyses import plots_of
from a2mim.report.figures import Plot, draw_on
from a2mim.report.records import read_json

_RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_RC |= {"axes.grid": True, "grid.color": "#d5dae0"}
_RC |= {"legend.frameon": False, "figure.constrained_layout.use": True}
_SERIES = ("#0060a8", "#a34a00", "#00735a", "#8c2f74", "#5c5c00", "#444444")  # those of the page, in light
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
_SIZE, _DPI = (4.6, 3.0), 200  # inches, pixels an inch


def write_figures(results: list[Path]) -> list[Path]:
    """Writes <name>-<number>.png and .svg beside each JSON file of an analysis, and returns their paths."""
    written = []
    for path in results:
        for number, plot in enumerate(plots_of(read_json(path) or {}), 1):
            for ending in ("png", "svg"):
                written.append(path.with_name(f"{path.stem}-{number}.{ending}"))
                _save(plot, written[-1])
    return written


def _save(plot: Plot, path: Path) -> None:
    settings: dict[Any, Any] = {**_RC, "svg.hashsalt": path.name}
    settings["axes.prop_cycle"] = cycler(color=_SERIES) + cycler(linestyle=_DASHES)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=_SIZE)
        axes = figure.subplots()
        draw_on(axes, plot)
        axes.set_title(plot.title, fontsize=11)
        dated = {"Date": None} if path.suffix == ".svg" else {}
        with partial_path(path) as partial:
            figure.savefig(partial, format=path.suffix[1:], dpi=_DPI, metadata=dated)

"""Figures as inline SVG whose colours are those of the page, so that one drawing serves light and dark.

matplotlib draws with stand-in colours, which are replaced by CSS variables. Text stays text: it can be read aloud,
searched and scaled, and nothing in it is interpreted as mathematics or markup. The margins follow from the length of
the labels: matplotlib's own layout draws every figure twice, and knows the font of the reader's browser no better.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from a2mim.text import one_line

_INK, _GRID = "#010203", "#010204"
_SERIES = tuple(f"#0102{n:02x}" for n in range(0x10, 0x16))  # stand-ins for --series-1 … --series-6
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))  # so that no line is told by its colour alone
_RC = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **{"svg.fonttype": "none", "text.parse_math": False, "axes.unicode_minus": True, "font.size": 11},
    **{"axes.spines.top": False, "axes.spines.right": False, "grid.color": _GRID, "axes.grid": True},
    **{"axes.prop_cycle": cycler(color=_SERIES) + cycler(linestyle=_DASHES)},
    **{"legend.frameon": False, "lines.linewidth": 1.8, "axes.xmargin": 0.02},
}
_SIZE = (4.6, 3.0)  # inches; small, so that the text can be read at the width of a phone
_LETTER = 0.64 * 11 / 72  # inches: the width of a digit of the labels
_LINE = 1.25 * 11 / 72  # inches: the height of a line of text
_MOST_POINTS = 600  # of a line; more cannot be seen, and would only make the page larger
_numbers = count()


@dataclass(frozen=True)
class Line:
    """One line of a figure: x and y of equal length, and optionally a band (low, high) around it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Plot:
    """A figure: what it shows, its axes, its lines, and its message for those who do not see it.

    Args:
        marks: x positions of resumes, drawn as thin vertical lines.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    message: str
    log: bool = False
    marks: Sequence[float] = ()


def svg(plot: Plot) -> str:
    """The figure as an SVG element that fills its container and carries its message as a text alternative."""
    settings: Any = {**_RC, "svg.hashsalt": f"figure-{next(_numbers)}"}  # matplotlib types every key as a literal
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=_SIZE)
        axes = figure.subplots()
        draw_on(axes, plot)
        for x in plot.marks:
            axes.axvline(x, color=_GRID, linewidth=1, linestyle=":")
        _make_room(figure, axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _with_page_colours(buffer.getvalue(), plot)


def draw_on(axes, plot: Plot) -> None:
    """The lines, bands, labels and legend of a figure, on matplotlib's axes."""
    for line in plot.lines:
        _draw(axes, line)
    axes.set_xlabel(one_line(plot.x_label))
    axes.set_ylabel(one_line(plot.y_label))
    if all(float(x).is_integer() for line in plot.lines for x in line.x):
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    if plot.log and all(y > 0 for line in plot.lines for y in line.y):
        _make_logarithmic(axes)
    if len(plot.lines) > 1:
        _make_room_above(axes, share=0.09 * len(plot.lines) + 0.03)
        axes.legend(fontsize=10, loc="upper right")


def _make_logarithmic(axes) -> None:
    """A logarithmic y axis whose labels are plain numbers, the more of each decade the fewer decades there are."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = range(1, 10) if high < 5 * low else (1, 2, 5) if high < 300 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=decades, numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _make_room_above(axes, share: float) -> None:
    """Keeps the uppermost share of the axes free of lines, for a legend that would lie upon them."""
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(axes.get_ylim())
    share = min(share, 0.5)
    axes.set_ylim(top=scale.inverted().transform(high + (high - low) * share / (1 - share)))


def _make_room(figure: Figure, axes) -> None:
    """Margins that hold the labels of both axes."""
    (width, height), ticks = figure.get_size_inches(), axes.yaxis.get_major_locator()()
    labels = axes.yaxis.get_major_formatter().format_ticks(ticks)
    low, high = axes.get_ylim()
    shown = [len(label) for label, tick in zip(labels, ticks, strict=True) if low <= tick <= high]
    left = max(shown, default=0) * _LETTER + 2 * _LINE
    figure.subplots_adjust(left / width, 3 * _LINE / height, 1 - 2.4 * _LETTER / width, 1 - 0.7 * _LINE / height)


def _draw(axes, line: Line) -> None:
    step = -(-len(line.x) // _MOST_POINTS)
    x, y = _thin(line.x, step), _thin(line.y, step)
    (drawn,) = axes.plot(x, y, label=one_line(line.label), marker="o" if len(x) < 12 else None, markersize=4)
    if line.low is not None and line.high is not None:
        low, high = _thin(line.low, step), _thin(line.high, step)
        axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.18, linewidth=0)


def _thin(values: Sequence[float], step: int) -> list[float]:
    """Every `step`-th value, and always the last."""
    kept = list(values[::step])
    return kept if (len(values) - 1) % step == 0 else [*kept, values[-1]]


def _with_page_colours(text: str, plot: Plot) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(
        r"<svg[^>]*viewBox=\"([^\"]+)\"[^>]*>",
        lambda match: f'<svg viewBox="{match[1]}" role="img" aria-label="{escape(one_line(plot.message))}">',
        text,
        count=1,
    )
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.S)
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
    for number, colour in enumerate(_SERIES, 1):
        text = text.replace(colour, f"var(--series-{number})")
    return text.replace(_INK, "currentColor").replace(_GRID, "var(--grid)").strip()

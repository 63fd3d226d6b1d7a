"""A figure is drawn once, and its labels have room."""

import re

import pytest
from matplotlib.figure import Figure

from a2mim.report.figures import Line, Plot, draw_on, svg


def plot(y, log=False) -> Plot:
    return Plot("Loss", "step", "loss", [Line("loss", list(range(len(y))), y)], "falls", log=log)


def texts(drawn: str) -> list[str]:
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", drawn)]


def test_a_figure_is_drawn_once(monkeypatch):
    seen, plain = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: seen.append(1) or plain(self, renderer))
    svg(plot([3.0, 2.0, 1.0]))
    assert seen == [1]


@pytest.mark.parametrize("y", [[1e-3, 2e-3], [0.31, 0.29], [1.0, 1e-9], [0.5, 0.02]])
def test_a_logarithmic_axis_has_several_plain_numbers_whatever_its_range(y):
    labels = [text for text in texts(svg(plot(y, log=True))) if re.fullmatch(r"[\d.e-]+", text)]
    between = [float(text) for text in labels if min(y) * 0.5 <= float(text) <= max(y) * 2]
    assert len(between) >= 2 and len(labels) <= 20


def test_steps_are_whole_numbers():
    assert not [text for text in texts(svg(plot([3e4, 2e4, 1e4]))) if "." in text]


@pytest.mark.parametrize("log", [False, True])
def test_a_legend_of_many_lines_lies_on_none_of_them(log):
    lines = [Line(f"run {i}: loss", list(range(50)), [1.0 - i / 100] * 50) for i in range(4)]
    figure = Figure(figsize=(4.6, 3.0))
    axes = figure.subplots()
    draw_on(axes, Plot("Loss", "step", "loss", lines, "flat", log=log))
    figure.draw_without_rendering()
    bottom = axes.get_legend().get_window_extent().y0
    assert all(axes.transData.transform((0, line.y[0]))[1] < bottom for line in lines)

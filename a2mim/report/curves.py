"""The curves of training: loss and its parts, rate, gradient norm, speed, waiting, memory. And the curves of the
features on the way: probes, effective rank, deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from a2mim.report.figures import Line, Plot
from a2mim.report.records import RunRecord
from a2mim.report.summary import is_pair

Get = Callable[[dict[str, Any]], Any]
# title, label of y, key of the log's line
_SINGLE = (
    ("Learning rate", "learning rate", "lr"),
    ("Gradient norm", "L2 norm", "grad_norm"),
    ("Speed", "images per second", "images_per_second"),
    ("Waiting for data", "share of the time", "data_share"),
    ("GPU memory", "GiB at most", "gpu_memory_gb"),
    ("Memory of the training process", "GiB at most", "memory_gb"),
)
_FEATURES = (
    ("Effective rank of the features", "effective rank", "effective_rank"),
    ("Deviation of the features", "standard deviation", "feature_std"),
)
_PROBES = (("k-NN", "knn"), ("Linear probe", "linear"), ("Attentive probe", "attentive"))  # title, name in the log


def curves(runs: Sequence[RunRecord]) -> list[Plot]:
    """One plot a quantity; several runs share axes, and a quantity that no run logged has no plot."""
    return [*_losses(runs, log=False), *_losses(runs, log=True)[:1], *_parts(runs), *_single(runs, _SINGLE)]


def on_the_way(runs: Sequence[RunRecord]) -> list[Plot]:
    """What the probes and the features of fixed images were while the runs trained."""
    return [*_online(runs), *_single(runs, _FEATURES)]


def _single(runs: Sequence[RunRecord], quantities: Sequence[tuple[str, str, str]]) -> list[Plot]:
    plots = []
    for title, label, key in quantities:
        lines = [line for run in runs if (line := _line(run, title.lower() if len(runs) == 1 else run.name, key))]
        if lines:
            plots.append(Plot(title, "step", label, lines, _message(title, lines), marks=_resumes(runs)))
    return plots


def _losses(runs: Sequence[RunRecord], log: bool) -> list[Plot]:
    lines = []
    for run in runs:
        lines += [line for line in (_line(run, _label(runs, run, "loss"), "loss"),) if line]
        lines += [line for line in (_line(run, _label(runs, run, "one colour"), "baseline"),) if line]
    if not lines:
        return []
    title = "Loss, logarithmic" if log else "Loss"
    message = _message("Loss", lines)
    return [Plot(title, "step", "loss", lines, message, log=log, marks=_resumes(runs))]


def _parts(runs: Sequence[RunRecord]) -> list[Plot]:
    """Each named part of the loss, where there are several."""
    found = []
    for run in runs:
        names = [key for key in (run.lines[-1] if run.lines else {}) if key.startswith("loss_")]
        if len(names) > 1:
            found += [line for n in names if (line := _line(run, _label(runs, run, n.removeprefix("loss_")), n))]
    if not found:
        return []
    return [Plot("Parts of the loss", "step", "weighted loss", found, _message("Parts of the loss", found), log=True)]


def _online(runs: Sequence[RunRecord]) -> list[Plot]:
    """The probes on the way with their intervals: of one run in one plot, of several runs a plot for each probe."""
    if len(runs) == 1:
        lines = [line for name, key in _PROBES if (line := _probe(runs[0], name, key))]
        return [_probes_plot("Probes on the way", lines)] if lines else []
    found = []
    for name, key in _PROBES:
        if lines := [line for run in runs if (line := _probe(run, run.name, key))]:
            found.append(_probes_plot(f"{name} on the way", lines))
    return found


def _probes_plot(title: str, lines: list[Line]) -> Plot:
    return Plot(title, "step", "top-1, %", lines, _message(f"{title}, on few images", lines, "%"))


def _probe(run: RunRecord, label: str, key: str) -> Line | None:
    """The accuracy of a probe by step, with its 95 % interval where every line of the log has one."""
    line = _line(run, label, f"{key}_top1")
    if line is None:
        return None
    intervals = {told["step"]: told.get(f"{key}_interval") for told in run.online}
    bands: list[Any] = [intervals.get(step) for step in line.x]
    if not all(is_pair(band) and all(map(_is_number, band)) for band in bands):
        return line
    return replace(line, low=[band[0] for band in bands], high=[band[1] for band in bands])


def _line(run: RunRecord, label: str, key: str) -> Line | None:
    """The values by step, ascending. A line that holds a loss and numbers of the features is in both lists of a run."""
    found = {line["step"]: line[key] for line in (*run.lines, *run.online) if _is_number(line.get(key))}
    steps = sorted(found)
    return Line(label, steps, [found[step] for step in steps]) if found else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < 1e30


def _label(runs: Sequence[RunRecord], run: RunRecord, what: str) -> str:
    return what if len(runs) == 1 else f"{run.name}: {what}"


def _message(title: str, lines: Sequence[Line], unit: str = "") -> str:
    """The text alternative: where each line starts and ends."""

    def tell(line: Line) -> str:
        first, last = (f"{line.y[i]:.4g}{unit} at step {line.x[i]:,}" for i in (0, -1))
        return f"{line.label} goes from {first} to {last}" if len(line.x) > 1 else f"{line.label} is {last}"

    told = [tell(line) for line in lines]
    return f"{title}: {'; '.join(told)}."


def _resumes(runs: Sequence[RunRecord]) -> list[float]:
    return [event["step"] for run in runs for event in run.events if event.get("event") == "resume"]

"""Results of the analyses as figures in plain values: title, axes, message and lines; the report draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from a2mim.analysis.spectra import DepthSpectrum

_MIDDLE = (0.3, 0.7)  # of the cells: the orders that the paper calls middle


def figure(title: str, x_label: str, y_label: str, message: str, lines: list[dict], log: bool = False) -> dict:
    """One figure as the report reads it."""
    return {"title": title, "x_label": x_label, "y_label": y_label, "message": message, "lines": lines, "log": log}


def interactions(results: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    """J(m) of each network, with the message of how strong the middle orders are."""
    lines = [
        {"label": label, "x": one["order"], "y": one["strength"], "low": one["low"], "high": one["high"]}
        for label, one in results.items()
    ]
    middle = {label: _mean_between(one["order"], one["strength"]) for label, one in results.items()}
    told = ", ".join(f"{value:.2f} in the {label} network" for label, value in middle.items())
    message = f"Mean interaction strength J of the middle orders (0.3 to 0.7 of the cells): {told}; 1 is the mean."
    shown = figure("Interaction strength", "order m / cells", "J(m)", message, lines)
    return {"message": message, "figures": [shown]}


def _mean_between(orders: Sequence[float], values: Sequence[float]) -> float:
    chosen = [v for order, v in zip(orders, values, strict=True) if _MIDDLE[0] <= order <= _MIDDLE[1]]
    return sum(chosen) / len(chosen) if chosen else float("nan")


def fourier(found: Mapping[str, Sequence[DepthSpectrum]]) -> dict[str, Any]:
    """The highest frequency by depth, the last block's spectrum, and the feature variance by depth."""
    highest = [
        {"label": label, "x": [one.depth for one in depths], "y": [one.amplitude[-1] for one in depths]}
        for label, depths in found.items()
    ]
    ends = ", ".join(f"{line['y'][-1]:.2f} in the {line['label']} network" for line in highest)
    message = f"Log amplitude of the highest frequency relative to frequency 0, in the last block: {ends}."
    last = [
        {"label": label, "x": list(depths[-1].frequency), "y": list(depths[-1].amplitude)}
        for label, depths in found.items()
    ]
    variance = [
        {"label": label, "x": [one.depth for one in depths], "y": [one.variance for one in depths]}
        for label, depths in found.items()
    ]
    spread = ", ".join(f"{line['y'][-1]:.3g} in the {line['label']} network" for line in variance)
    relative = "Δ log amplitude"
    return {
        "message": message,
        "figures": [
            figure("Highest frequency by depth", "depth of the block", relative, message, highest),
            figure("Spectrum of the last block", "frequency / highest", relative, message, last),
            figure(
                "Feature variance by depth",
                "depth of the block",
                "variance over places",
                f"Variance of the last block's features over the places of an image: {spread}.",
                variance,
                log=True,
            ),
        ],
    }


def occlusion(results: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> dict[str, Any]:
    """One figure a filling: top-1 by the share of hidden cells."""
    shown = []
    for filling in next(iter(results.values())):
        lines = [
            {"label": label, "x": one[filling]["ratio"], "y": one[filling]["top1"]}
            | {"low": one[filling]["low"], "high": one[filling]["high"]}
            for label, one in results.items()
        ]
        half = ", ".join(f"{_at(line, 0.5):.1f} % ({line['label']})" for line in lines)
        message = f"Top-1 when half of the cells are hidden by {filling}: {half}."
        shown.append(figure(f"Occlusion: {filling}", "share of hidden cells", "top-1, %", message, lines))
    return {"message": shown[0]["message"], "figures": shown}


def _at(line: Mapping[str, Any], x: float) -> float:
    return line["y"][min(range(len(line["x"])), key=lambda i: abs(line["x"][i] - x))]


def rank(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Singular values on a logarithmic axis."""
    lines = []
    for label, one in results.items():
        values = [value for value in one["values"] if value > 1e-8]
        lines.append({"label": label, "x": list(range(1, len(values) + 1)), "y": values})
    told = "; ".join(
        f"{label}: RankMe {one['rankme']:.1f}, effective rank {one['effective_rank']:.1f}"
        for label, one in results.items()
    )
    message = f"Rank of the features: {told}."
    return {
        "message": message,
        "figures": [figure("Singular values", "place", "relative to the largest", message, lines, log=True)],
    }

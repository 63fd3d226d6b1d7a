"""What a run writes its encoder for beyond timm's folder, at its end: the recipe's `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from a2mim.engine.pretrain_settings import PretrainSettings
from a2mim.export import check_possible, prove_further
from a2mim.pixels import Preprocessing

FOLDER = "export"  # in the run's folder, where `a2mim export RUN` writes too


def further_targets(settings: PretrainSettings) -> list[str]:
    """The targets of a recipe beside timm's folder, which every run with an `export` leaves in encoder/."""
    return [name for name in dict.fromkeys(settings.export) if name != "timm"]


def check_further(encoder: Any, settings: PretrainSettings) -> None:
    """Raises ValueError where a target cannot take this encoder; asked before the training, not after it."""
    if names := further_targets(settings):
        check_possible(encoder.model, encoder.arguments(), _preprocessing(encoder, settings), names)


def write_further(encoder: Any, settings: PretrainSettings, receipt: dict, folder: Path) -> list[dict]:
    """Writes an encoder for each further target; returns the receipts. A target that fails stops nothing: in place of
    its receipt there is its name and, under "problem", the reason.

    Args:
        encoder: a `MaskedEncoder`, with BatchNorm as it was exported.
        receipt: of timm's folder.
        folder: of the run.
    """
    told = encoder.arguments() | {"source": str(folder), "batchnorm": receipt["batchnorm"]}
    names = further_targets(settings)
    return prove_further(encoder.model, told, _preprocessing(encoder, settings), names, folder / FOLDER, folder)


def further_lines(summary: dict) -> list[str]:
    """Lines for the end of a run."""
    return [
        f"  warning  not exported to {each['target']}: {each['problem']}"
        if "problem" in each
        else f"  export   {each['folder']}"
        for each in summary.get("exports", [])
    ]


def _preprocessing(encoder: Any, settings: PretrainSettings) -> Preprocessing:
    data = settings.data
    return Preprocessing(data.mean, data.std, encoder.img_size, data.interpolation)

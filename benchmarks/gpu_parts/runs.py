"""Real runs for the parts that need one: their settings, their images, and processes to run them in."""

from __future__ import annotations

import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import a2mim

from .isolation import PROCESSES
from .scale import TINY, Scale

QUIET: dict[str, Any] = {"export": [], "judge.every_epochs": None, "log.report": False}


def settings_of(scale: Scale, **more: Any) -> dict[str, Any]:
    """What a run of the XCiT recipe at laptop scale gets here: no judging, no export; tiny in a dry run."""
    tiny = {"model.encoder.model_args": TINY, "data.img_size": 32, "global_batch_size": 8, "log.pictures": 2}
    return QUIET | (tiny | {"log.rows": 2} if scale.dry else {}) | more


def write_images(folder: Path, number: int) -> Path:
    """A folder of small smooth images; it stays as it is where it is there already."""
    if not folder.exists():
        folder.mkdir(parents=True)
        generator = np.random.default_rng(0)
        for i in range(number):
            image = cv2.resize(generator.integers(0, 256, (9, 8, 3), np.uint8), (72, 64))
            cv2.imwrite(str(folder / f"{i:04d}.png"), image)
    return folder


def start(recipe: str, data: Path | str | None, folder: Path, scale: Scale, **arguments: Any) -> Any:
    """A run in a process of its own, which ends with its part; what it says goes to FOLDER.log."""
    words = {"device": scale.device, **arguments}
    process = PROCESSES.Process(target=_train, args=(recipe, data, folder, words))
    process.start()
    return process


def _train(recipe: str, data: Path | str | None, folder: Path, words: dict[str, Any]) -> None:
    with folder.with_suffix(".log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            a2mim.pretrain(recipe, data and str(data), folder, **words)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=log, flush=True)
            sys.exit(1)


def lines_of(folder: Path) -> list[str]:
    """The lines of a run's log so far."""
    log = folder / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def said(folder: Path) -> str:
    """The end of what a run said, for a message."""
    log = folder.with_suffix(".log")
    return log.read_text()[-500:] if log.exists() else ""

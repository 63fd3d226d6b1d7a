"""Loggers of other tools, by name: mmengine's visualizer backends. None is used that the recipe does not name.

`log.backends=["tensorboard", "wandb"]`, or with options `[dict(type="wandb", project="mim", mode="offline")]`.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import VISBACKENDS
from mmengine.visualization import MLflowVisBackend

from a2mim.engine.setting_groups import Log
from a2mim.text import nearest


@VISBACKENDS.register_module()
class MLflowPictures(MLflowVisBackend):
    """mmengine's logger, mended in two ways: a picture has a name with its step and the ending that MLflow asks for,
    and the end of a run copies no files. mmengine's copies those of its own store among them.
    """

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **more: Any) -> None:
        super().add_image(f"{name}/step_{step:08d}.png", image, step, **more)

    def close(self) -> None:
        if hasattr(self, "_mlflow"):
            self._mlflow.end_run()


@dataclass(frozen=True)
class Backend:
    """Facts about a logger.

    Args:
        kind: mmengine's class.
        package: what must be installed.
        where: its default destination.
    """

    kind: str
    package: str
    where: str


BACKENDS = {
    "tensorboard": Backend("TensorboardVisBackend", "tensorboard", "files in {folder}"),
    "wandb": Backend("WandbVisBackend", "wandb", "https://api.wandb.ai"),
    "mlflow": Backend("MLflowPictures", "mlflow", "files in {folder}"),
    "aim": Backend("AimVisBackend", "aim", "its repository in the current folder"),
    "clearml": Backend("ClearMLVisBackend", "clearml", "the server of your clearml.conf"),
    "dvclive": Backend("DVCLiveVisBackend", "dvclive", "files in {folder}"),
    "neptune": Backend("NeptuneVisBackend", "neptune", "https://app.neptune.ai"),
}

OFFLINE = ("offline", "dryrun")  # modes of W&B in which it sends nothing


def options_of(log: Log) -> list[tuple[str, dict[str, Any]]]:
    """(name, options) of each logger that the recipe names.

    Raises:
        ValueError: an unknown name, or a package that is not installed.
    """
    entries = [*log.backends, *(["tensorboard"] if log.tensorboard and "tensorboard" not in log.backends else [])]
    found = []
    for entry in entries:
        options = dict(entry) if isinstance(entry, dict) else {"type": entry}
        name = options.pop("type", None)
        if name not in BACKENDS:
            raise ValueError(
                f"log.backends names {name!r}, which is no logger{nearest(str(name), BACKENDS, 2)};"
                f" choose among {', '.join(BACKENDS)}"
            )
        package = BACKENDS[name].package
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"log.backends names {name!r}, and the package {package} is not installed: pip install {package},"
                " or leave it out"
            )
        found.append((name, options))
    return found


def configs(log: Log) -> list[dict[str, Any]]:
    """What mmengine's Visualizer takes as `vis_backends`."""
    found = []
    for name, options in options_of(log):
        more = {"init_kwargs": options} if name in ("wandb", "clearml", "neptune", "dvclive", "aim") else options
        found.append({"type": BACKENDS[name].kind, **more} if options else {"type": BACKENDS[name].kind})
    return found


def stay_local(log: Log) -> None:
    """Sets what loggers that write files alone read from the environment, unless it is set: MLflow then takes a local
    folder, which its newer versions refuse, and neither MLflow nor W&B reports its own use or errors to its makers.
    """
    for name, options in options_of(log):
        if name == "mlflow" and not options.get("tracking_uri"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if name == "wandb" and _wandb_mode(options) in OFFLINE:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def _wandb_mode(options: dict[str, Any]) -> str:
    return options.get("mode") or os.environ.get("WANDB_MODE", "online")


def destinations(log: Log, folder: Path | str) -> list[str]:
    """A line for the screen about each logger: where it writes or sends to."""
    return [f"  logger   {name}: {_where(name, options, folder)}" for name, options in options_of(log)]


def _where(name: str, options: dict[str, Any], folder: Path | str) -> str:
    told = BACKENDS[name].where
    if name == "wandb":
        mode = _wandb_mode(options)
        told = os.environ.get("WANDB_BASE_URL", told)
        if mode == "disabled":
            return "nothing is written or sent: its mode is disabled"
        if mode in OFFLINE:
            return f"files in {folder}; nothing is sent"
        return f"sends to {told}"
    if name == "mlflow" and options.get("tracking_uri"):
        if str(options["tracking_uri"]).startswith(("file:", "sqlite:", "/")):
            return f"{options['tracking_uri']}; nothing is sent"
        return f"sends to {options['tracking_uri']}"
    if name == "clearml" or name == "neptune":
        return f"sends to {told}"
    return told.format(folder=folder) + ("; nothing is sent" if "files" in told else "")

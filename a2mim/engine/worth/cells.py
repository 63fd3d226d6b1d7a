"""One cell of the comparison: an arm, a seed and a share of the labels, computed once and kept as a file.

Every cell is a call of `a2mim.pretrain`, `a2mim.finetune` or `a2mim.evaluate` as a user could make it.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a2mim.checkpoints import list_checkpoints
from a2mim.data import ImageDataset
from a2mim.engine.config import load_config
from a2mim.engine.run import finetune, pretrain
from a2mim.engine.stored import holds_run
from a2mim.engine.worth.budget import CURVE_POINTS, Schedule
from a2mim.evaluation.evaluate import evaluate
from a2mim.evaluation.identity import hash_of
from a2mim.evaluation.results import pack, read_results
from a2mim.files import appending, read_json, write_json
from a2mim.protocols import read_protocol
from a2mim.weights.sources import read_source

PROBE = "efficient-probe"
RECIPES = (  # part of a network's name -> the recipe whose laptop scale it is pre-trained by
    ("convnext", "a2mim_convnext_tiny"),
    ("swin", "a2mim_swin_tiny"),
    ("xcit", "a2mim_xcit"),
    ("xvit", "a2mim_xvit"),
    ("linglo", "a2mim_linglo"),
    ("crossvit", "a2mim_crossvit"),
    ("vit", "a2mim_vit_small"),
)
DEFAULT_RECIPE = "a2mim_resnet18"
TUNING = "small-data"  # the protocol of every fine-tuning; the budget sets its epochs
BATCH = read_protocol(TUNING).constants["global_batch_size"]  # images of a step, of pre-training too
QUIET = {"log.report": False, "export": []}  # dozens of runs: no page, no pictures and no proof of an export for each
SAVED = 2  # checkpoints for each point of the learning curve
SAVED_EVERY = 1.0  # minutes of work that a kill may cost, where no step is due before


class Stopped(Exception):
    """A signal ended a run between two steps; what was computed is kept.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int):
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


@dataclass(frozen=True)
class Arm:
    """One way to begin.

    Attributes:
        name: as tables show it.
        network: timm's name.
        start: a source of weights, or None: random ones.
        pretrained: whether it is pre-trained here, from `start`.
        baseline: name of the arm that it is compared with; "" for the one from scratch.
    """

    name: str
    network: str
    start: str | None
    pretrained: bool
    baseline: str


def arms_of(sources: list[str], network: str | None) -> list[Arm]:
    """From scratch and pre-trained here, a network each; given weights, and these pre-trained further, a source each.

    Raises:
        ValueError: a source has no weights.
    """
    named = []
    for source in sources:
        found = read_source(source)
        if found.tensors is None:
            raise ValueError(f"--with {source} has no weights, only a name: write {source}:pretrained, or a file")
        named.append((source, found.name))
    networks = list(dict.fromkeys([name for _, name in named] or [network or "resnet18"]))
    arms = []
    for name in networks:
        told = f" ({name})" if len(networks) > 1 else ""
        scratch = Arm(f"from scratch{told}", name, None, False, "")
        arms += [scratch, Arm(f"pre-trained here{told}", name, None, True, scratch.name)]
        for source, its in named:
            if its == name:
                short = f" ({source})" if len(named) > 1 else ""
                given = Arm(f"given weights{short}", name, source, False, scratch.name)
                arms += [given, Arm(f"given weights, pre-trained here{short}", name, source, True, given.name)]
    return arms


def recipe_for(network: str) -> str:
    """The shipped recipe that a network is pre-trained by."""
    return next((recipe for part, recipe in RECIPES if part in network), DEFAULT_RECIPE)


def network_of(recipe: str) -> str:
    """The network that a recipe trains at its laptop scale."""
    return str(load_config(recipe, laptop=True).model["encoder"]["name"])


def encoder_options(recipe: str, network: str) -> dict[str, Any]:
    """The settings by which a recipe pre-trains exactly the network that the other arms have: timm's, by name alone."""
    encoder: dict = load_config(recipe, laptop=True).model["encoder"]
    options: dict[str, Any] = {"model.encoder.model_args": {}} if encoder.get("model_args") else {}
    if encoder["name"] != network:
        options |= {"model.encoder.name": network, "model.encoder.site": "auto"}
    return options


@dataclass
class Bench:
    """Where and how cells are computed.

    Attributes:
        folder: of the whole comparison.
        img_size: pixels.
        device, num_workers: as in `a2mim.pretrain`.
        recipe: of pre-training; None chooses by the network.
        say: is told which cell begins.
    """

    folder: Path
    img_size: int
    device: str | None = None
    num_workers: int | None = None
    recipe: str | None = None
    say: Callable[[str], object] = print

    def path(self, name: str) -> Path:
        return self.folder / "cells" / f"{name}.json"

    def run_folder(self, name: str) -> Path:
        return self.folder / "runs" / name

    def has(self, name: str) -> bool:
        """Whether the cell is there, whole."""
        return self._read(name) is not None

    def cell_seconds(self, name: str) -> float:
        """What the cell took; 0 where there is none."""
        found = self._read(name)
        return 0.0 if found is None else float(found["seconds"])

    def _read(self, name: str) -> dict | None:
        with contextlib.suppress(OSError, ValueError):
            found = read_json(self.path(name))
            if isinstance(found, dict) and found.get("cell") == name and found.pop("checksum", "") == hash_of(found):
                return found
        return None

    def forget(self, name: str) -> None:
        """Removes a cell and its run, so that both are computed again."""
        self.path(name).unlink(missing_ok=True)
        shutil.rmtree(self.run_folder(name), ignore_errors=True)

    def once(self, name: str, kind: str, compute: Callable[[], dict]) -> dict:
        """The cell's result: from its file, or computed and written. A damaged file is computed again.

        Args:
            kind: of work, see `budget.KINDS`.
        """
        if (kept := self._read(name)) is not None:
            return kept
        path = self.path(name)
        self.say(f"  {name}")
        started = time.perf_counter()
        result = {"cell": name, "kind": kind, **compute()}
        result["seconds"] = round(time.perf_counter() - started, 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result | {"checksum": hash_of(result)})
        return result

    @contextlib.contextmanager
    def quiet(self, name: str):
        """What a run prints goes to a file beside it: a comparison makes dozens of runs."""
        path = self.folder / "output" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with appending(path) as file, contextlib.redirect_stdout(file):
            yield

    def pretrain(
        self, name: str, arm: Arm, pool: ImageDataset, schedule: Schedule, seed: int, curve: bool = False, **more
    ) -> dict:
        """Pre-trains into the cell's folder, or goes on with what is there.

        Args:
            curve: keep the checkpoints that the learning curve is made of; only steps decide when they are written.
            more: settings of this run alone.
        """
        recipe = self.recipe or recipe_for(arm.network)
        options = QUIET | _schedule(schedule, seed) | {"data.img_size": self.img_size, "log.pictures": 2}
        if curve:
            options |= {"checkpoint.every_epochs": saved_epochs(schedule), "checkpoint.keep": SAVED * CURVE_POINTS + 2}
        else:
            options |= _saved_by_time(schedule)
        if arm.start is not None:
            options["init_from"] = arm.start
        options |= encoder_options(recipe, arm.network)
        return self._run(name, lambda **launch: pretrain(recipe, pool, laptop=True, **launch), options | more)

    def finetune(
        self, name: str, source: str, train: ImageDataset, test: ImageDataset, s: Schedule, seed: int, **more
    ) -> dict:
        """Fine-tunes into the cell's folder, or goes on with what is there; tests once, at the end.

        Args:
            more: settings of this run alone.
        """
        options = QUIET | _schedule(s, seed) | {"schedule.least_steps": None} | _saved_by_time(s) | more
        options |= {"data.img_size": self.img_size, "data.test_size": self.img_size, "evaluate.every_epochs": s.epochs}
        summary = self._run(name, lambda **launch: finetune(TUNING, source, train, test_data=test, **launch), options)
        result = read_results(self.run_folder(name))[-1]
        shutil.rmtree(self.run_folder(name) / "checkpoints", ignore_errors=True)
        kept = {"top1": result["top1_last"], "interval": result["interval"], "correct": result["correct"]}
        return kept | {"steps": summary["steps"], "images": len(train)}

    def _run(self, name: str, start: Callable[..., dict], options: dict) -> dict:
        folder = self.run_folder(name)
        with self.quiet(name):
            summary = start(
                work_dir=folder,
                resume=holds_run(folder),
                device=self.device,
                num_workers=self.num_workers,
                **({} if holds_run(folder) else options),
            )
        if summary["status"] == "stopped":
            raise Stopped(summary["signal"])
        return summary

    def judge_frozen(
        self, name: str, source: str, train: ImageDataset, test: ImageDataset, seed: int, kind: str = "frozen"
    ) -> dict:
        """The cell of an attentive probe on a frozen encoder."""
        return self.once(name, kind, lambda: self._probe(name, source, train, test, seed))

    def _probe(self, name: str, source: str, train: ImageDataset, test: ImageDataset, seed: int) -> dict:
        """An attentive probe on the frozen encoder; of a mere name on the random network of this seed.

        BatchNorm's statistics are those of the training images for every arm, so that they favour none.
        """
        with self.quiet(name):
            (result,) = evaluate(
                source,
                [PROBE],
                train,
                test,
                overrides={"seed": seed},
                img_size=self.img_size,
                seed=seed,
                device=self.device,
                num_workers=self.num_workers or 0,
                calibrate=True,
            )
        kept = {"top1": result["top1_last"], "interval": list(result["interval"]), "correct": pack(result["correct"])}
        return kept | {"images": len(train)}

    def checkpoints(self, name: str) -> list[tuple[int, Path]]:
        """(steps taken, file) of what a pre-training kept on its way."""
        paths = list_checkpoints(self.run_folder(name) / "checkpoints")
        return [(int(re.sub(r"\D", "", path.stem)), path) for path in paths]

    def give_up_checkpoints(self, name: str, keep_newest: bool) -> None:
        """Deletes a run's checkpoints, all or all but the newest: they are three times as large as the network."""
        for _, path in self.checkpoints(name)[: -1 if keep_newest else None]:
            path.unlink()


def saved_epochs(schedule: Schedule) -> int:
    """Epochs between two checkpoints of a pre-training with a learning curve: SAVED for each point."""
    return math.ceil(schedule.epochs / (SAVED * CURVE_POINTS))


def curve_steps(schedule: Schedule) -> list[int]:
    """Steps of the learning curve between the start and the end; at each of them there is a checkpoint."""
    every = SAVED * saved_epochs(schedule) * (schedule.steps // schedule.epochs)
    return list(range(every, schedule.steps, every))


def _saved_by_time(schedule: Schedule) -> dict:
    """One checkpoint, renewed every minute and at the end."""
    return {"checkpoint.every_epochs": schedule.epochs, "checkpoint.every_minutes": SAVED_EVERY, "checkpoint.keep": 1}


def _schedule(schedule: Schedule, seed: int) -> dict:
    return {
        "schedule.epochs": schedule.epochs,
        "schedule.warmup_epochs": min(schedule.epochs // 10, 5),
        "global_batch_size": schedule.batch,
        "seed": seed,
    }


def source_of(arm: Arm, folder: Path) -> str:
    """What the arm's encoder is read from; `folder`: its own pre-training."""
    return str(folder) if arm.pretrained else arm.start or arm.network

"""How often a step makes the host wait for the device, and on which lines.

On a GPU, torch itself reports each wait (`torch.cuda.set_sync_debug_mode`). On a CPU nothing waits; there the part
counts the operations that would make a GPU wait.
"""

from __future__ import annotations

import os
import statistics
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import a2mim
from a2mim.engine.runner import TrainLoop, TrainRunner

from .isolation import Findings
from .runs import settings_of, write_images
from .scale import Scale

ASKS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "lift_fresh")
IMAGES, BATCH, EPOCHS, LOGGED = 96, 8, 2, 5
FIRST = 4  # the first step that counts; earlier ones choose kernels and fill caches
Places = dict[int, Counter]


def run(scale: Scale, findings: Findings) -> None:
    """A run at laptop scale, every step of it watched."""
    folder = findings.path.parent
    images = write_images(folder / "waits_images", IMAGES)
    more = {"global_batch_size": BATCH, "schedule.epochs": 1 if scale.dry else EPOCHS, "schedule.warmup_epochs": 0}
    more |= {"log.every_steps": LOGGED, "log.pictures": 2, "checkpoint.every_steps": 1000}
    watch = reported if scale.where.type == "cuda" else counted
    with watched(watch) as places:
        a2mim.pretrain(
            "a2mim_xcit",
            str(images),
            folder / "waits_run",
            laptop=True,
            device=scale.device,
            num_workers=0,
            **settings_of(scale, **more),
        )
    steps = IMAGES // BATCH
    logged = {step for step in places if step % LOGGED == 0}
    ordinary = [step for step in places if step >= FIRST and step not in logged and step % steps]
    worst = max(ordinary, key=lambda step: places[step].total())
    median = statistics.median(places[step].total() for step in ordinary)
    findings.add("an ordinary step", waits=median, most=places[worst].total(), where=dict(places[worst]))
    last = max(step for step in logged if step % steps)
    findings.add("a logged step", waits=places[last].total(), where=dict(places[last]))


@contextmanager
def watched(watch: Callable) -> Iterator[Places]:
    """Watches each step of the runs inside, and the hooks after it. Gives {step: Counter of places}."""
    places: Places = {}
    step, hooks = TrainLoop.run_iter, TrainRunner.call_hook

    def run_iter(self: TrainLoop, batch: dict) -> None:
        with watch() as found:
            step(self, batch)
        places[self.step] = found

    def call_hook(self: TrainRunner, name: str, **arguments: object) -> None:
        if name != "after_train_iter":
            hooks(self, name, **arguments)
            return
        with watch() as found:
            hooks(self, name, **arguments)
        places[self.train_loop.step].update(found)

    TrainLoop.run_iter, TrainRunner.call_hook = run_iter, call_hook  # type: ignore[method-assign]
    try:
        yield places
    finally:
        TrainLoop.run_iter, TrainRunner.call_hook = step, hooks  # type: ignore[method-assign]


@contextmanager
def reported() -> Iterator[Counter]:
    """The waits that CUDA reports, by file and line."""
    found: Counter = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            for warning in caught:
                if "synchroniz" in str(warning.message):
                    found[f"{os.path.basename(warning.filename)}:{warning.lineno}"] += 1


@contextmanager
def counted() -> Iterator[Counter]:
    """The operations that would make a GPU wait, by file and line."""
    with Asks() as mode:
        yield mode.found


class Asks(TorchDispatchMode):
    """Counts the operations whose answer the host needs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in ASKS or name.startswith("unique") or by_mask:
            ours = [line for line in traceback.extract_stack() if "a2mim" in Path(line.filename).parts]
            where = f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno}" if ours else "torch"
            self.found[f"{name} at {where}"] += 1
        return func(*args, **(kwargs or {}))

"""What happens around a step: the rate, the log, the pictures, the checkpoints, the signals."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from a2mim.analysis.reconstructions import draw, layout, record_layout, save
from a2mim.checkpoints import checkpoint_path
from a2mim.engine.facts import starting_facts
from a2mim.engine.folder import remember
from a2mim.engine.loggers import options_of
from a2mim.engine.memory import peak_memory
from a2mim.engine.progress import start_progress
from a2mim.engine.records import Request, step_seed
from a2mim.engine.setting_groups import Checkpoint, Settings
from a2mim.engine.state import first_broken, state_of
from a2mim.engine.stored import read_log
from a2mim.files import appending, write_text
from a2mim.processes.group import Exchange, control_group, first_alone


class RecordHook(Hook):
    """Writes config.py when everything has been built and restored: a run that could not start leaves none."""

    priority = "VERY_HIGH"

    def __init__(self, settings: Settings, request: Request):
        self.settings, self.request = settings, request

    def before_train(self, runner) -> None:
        facts = {"of_steps": runner.max_iters, **starting_facts(runner.run, runner.world_size)}
        remember(runner.run.folder, self.settings, self.request, runner.run.changes, facts)


class ScheduleHook(Hook):
    """Sets the learning rate of the coming step, from a timm scheduler in closed form.

    Assumes that every epoch is as long as the current one; wrong after a change of data.
    """

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.scheduler.step_update(round(runner.run.loader.epochs_done(runner.iter) * len(runner.run.loader)))


class LogHook(Hook):
    """A progress bar, and a line of log.jsonl every few steps.

    Args:
        every: steps between two lines.
    """

    priority = "LOW"

    def __init__(self, every: int):
        self.every = every
        self.first: dict | None = None
        self.last: dict = {}
        self.extra: dict[str, float] = {}  # what other hooks add to the next line

    def before_train(self, runner) -> None:
        self.path = runner.run.folder / "log.jsonl"
        if is_main_process():
            kept = keep_lines_until(self.path, runner.iter)
            self.append(*(change for change in runner.run.changes if change not in kept))
            self.append(*resume_event(runner), *start_events(runner))
            lines = [line for line in kept if "loss" in line]
            self.first, self.last = (lines[0], lines[-1]) if lines else (None, {})
        self.logged = runner.iter
        self.bar = start_progress(runner.max_iters, runner.iter, is_main_process())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        step, loop = runner.iter, runner.train_loop
        self.bar.update(1)
        if step % self.every and step != 1 and step != runner.max_iters:
            return
        line = self.measure(runner, data_batch, outputs) | self.extra
        self.extra = {}
        loop.waited = loop.spent = 0.0
        self.logged = step
        self.last = line
        self.first = self.first or line
        if is_main_process():
            self.append(line)
            runner.visualizer.add_scalars({k: v for k, v in line.items() if isinstance(v, float)}, step=step)
        said = f"loss {line['loss']:.4f} {runner.run.task.caption(line)}".rstrip()
        self.bar.set_postfix_str(
            f"{said}, {line['images_per_second']:.0f} images/s, {line['data_share']:.0%} waiting for data",
            refresh=False,
        )

    def append(self, *lines: dict) -> None:
        """Adds lines to log.jsonl."""
        if lines:
            with appending(self.path) as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)

    def measure(self, runner, batch: dict, outputs: dict) -> dict:
        """One line of the log. Losses are those of this very step, not a running average, so that a resumed run logs
        the same; they are averaged over the processes.
        """
        loop, optimizer = runner.train_loop, runner.optim_wrapper
        values = outputs | runner.run.task.measure(runner.context, batch, runner.iter - 1)
        on_device = {"dtype": torch.float64, "device": runner.context.device}
        found = torch.stack([torch.as_tensor(value, **on_device) for value in values.values()])
        if runner.distributed:
            torch.distributed.all_reduce(found)
        *summed, norm = torch.cat([found, torch.as_tensor(optimizer.grad_norm, **on_device).view(1)]).tolist()
        loop.settle()  # a step that is not finite is not logged
        images = (runner.iter - self.logged) * len(batch["images"]) * runner.world_size
        line = {"step": runner.iter, "epoch": round(runner.run.loader.epochs_done(runner.iter), 3)}
        averaged = {name: total / runner.world_size for name, total in zip(values, summed, strict=True)}
        line |= averaged | runner.run.task.derive(averaged)
        group = optimizer.optimizer.param_groups[0]
        line |= {"lr": group["lr"] / group.get("lr_scale", 1.0), "grad_norm": norm}
        line["images_per_second"] = round(images / max(loop.spent, 1e-9), 1)
        line["data_share"] = round(loop.waited / max(loop.spent, 1e-9), 4)
        if faults := faults_of_all(runner):
            line["faults"] = dict(faults)
        if peak := peak_memory():
            line["memory_gb"] = round(peak / 2**30, 2)
        if runner.context.device.type == "cuda":
            line["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return line

    def after_train(self, runner) -> None:
        self.bar.close()
        runner.visualizer.close()


def resume_event(runner) -> list[dict]:
    """The log's line about where a run goes on; none for a run that begins."""
    if not 0 < runner.iter < runner.max_iters:
        return []
    changed = [each["changed"] for each in runner.run.changes if each["step"] == runner.iter]
    told = f"; changed: {'; '.join(changed[-1])}" if changed else ""
    return [{"step": runner.iter, "event": "resume", "says": f"The run was resumed after step {runner.iter:,}{told}."}]


def start_events(runner) -> list[dict]:
    """The log's lines about what was chosen when the run began; none for a run that goes on."""
    return [{"step": 0, "event": "start", "says": f"{note}."} for note in runner.run.notes]


def faults_of_all(runner) -> Counter:
    """Damaged images by reason, over all processes: each sees its own part of the data."""
    counts = Counter(runner.run.loader.faults)
    if not runner.distributed:
        return counts
    parts: list[Any] = [None] * runner.world_size
    torch.distributed.all_gather_object(parts, counts, group=control_group())
    return sum(parts, Counter())


def keep_lines_until(path: Path, step: int) -> list[dict]:
    """Drops the lines that a killed run logged after the checkpoint it resumes from, and every damaged line.

    Returns the remaining lines. A warning counts the damaged ones.
    """
    if not os.path.lexists(path):
        return []
    lines, damaged = read_log(path)
    kept = [line for line in lines if line["step"] <= step]
    if damaged:
        warnings.warn(f"{path}: {damaged} damaged lines are left out, {len(kept)} are kept", stacklevel=2)
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


class PictureHook(Hook):
    """Draws the same few images, with the same masks, at the start, now and then, and at the end.

    16-bit images, and images of other than one or three channels, are stretched by percentiles: most of them use a
    small part of their range.

    Args:
        images: (N, C, H, W) uint8 or uint16.
        how_many: pictures in a run, at least 2: the first and the last.
        bands: the channels to show, see `a2mim.analysis.reconstructions.draw`.
    """

    def __init__(self, images: torch.Tensor, how_many: int, bands: tuple[int, ...] | None = None):
        self.images, self.how_many, self.bands = images, how_many, bands
        self.stretch = images.dtype != torch.uint8 or images.shape[1] not in (1, 3)
        self.drawn: int | None = None  # the step of the last picture

    def before_train(self, runner) -> None:
        between = self.how_many - 1
        self.steps = {runner.max_iters * i // between for i in range(1, self.how_many)}
        if runner.iter == 0:
            self.draw(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter in self.steps:
            self.draw(runner, outputs)

    def draw(self, runner, outputs: dict | None = None) -> None:
        """Writes the picture of now. outputs: the losses of the last step; None before the first."""
        runner.train_loop.settle()
        with runner.whole() as model, first_alone() as first:
            if first:
                self._draw(runner, model, outputs)

    def _draw(self, runner, model, outputs: dict | None) -> None:
        generator = torch.Generator(runner.context.device).manual_seed(step_seed(runner.seed, 0, 0, "picture"))
        model.eval()
        with torch.no_grad():
            shown = model(runner.context.to_device(self.images), mode="predict", generator=generator)
        model.train()
        masks = len(shown["images"]) // len(self.images)
        shown = {name: value[::masks] for name, value in shown.items()}  # of several masks of an image, the first
        folder = runner.run.folder / "reconstructions"
        caption = (
            f"step {runner.iter:,} of {runner.max_iters:,}, epoch {runner.run.loader.epochs_done(runner.iter):.2f}"
        )
        caption += f", loss {float(outputs['loss']):.4f}" if outputs else ""
        picture = draw(shown, model.mean, model.std, self.bands, self.stretch, caption)
        save(picture, folder / f"step_{runner.iter:08d}.png")
        if options_of(runner.run.settings.log):
            runner.visualizer.add_image("reconstructions", picture, step=runner.iter)
        record_layout(folder, runner.iter, layout(shown))
        self.drawn = runner.iter


class PartsHook(Hook):
    """Lets the parts of a method act after each step (`MIM.after_step`), before anything is logged or saved."""

    priority = "HIGH"

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        runner.inner_model.after_step(runner.iter, runner.max_iters)


class CheckpointHook(Hook):
    """Saves every few steps or epochs and at the end, then deletes what is too old.

    Args:
        settings: the recipe's `checkpoint`.
    """

    priority = "VERY_LOW"

    def __init__(self, settings: Checkpoint):
        self.every_steps, self.every_epochs, self.keep = settings.every_steps, settings.every_epochs, settings.keep
        self.every_minutes, self.exchange = settings.every_minutes, Exchange()
        self.saved: int | None = None  # the step of the last checkpoint
        self.saved_at = 0.0  # seconds of this process's clock

    def before_train(self, runner) -> None:
        self.saved_at = time.monotonic()

    def is_old(self) -> bool:
        """Whether the last checkpoint is older than the recipe allows; on several processes, known one step later."""
        if self.every_minutes is None:
            return False
        return bool(self.exchange.largest(time.monotonic() - self.saved_at > 60 * self.every_minutes))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        step, steps = runner.iter, self.every_steps
        due = step % steps == 0 if steps else runner.run.loader.ends(step, self.every_epochs)
        due = self.is_old() or due
        runner.run.writer.look()
        if due or step == runner.max_iters:
            self.save(runner)

    def save(self, runner) -> None:
        if self.saved == runner.iter:
            return
        runner.train_loop.settle()
        broken = first_broken(runner.inner_model)
        if broken:
            raise FloatingPointError(
                f"step {runner.iter}: the weights are not finite any more, first in {broken}; nothing was saved,"
                f" {runner.run.last_good()}; try a lower optimizer.base_lr, clip_grad=1.0 or amp=None"
            )
        checkpoint = state_of(runner)  # on every process: hooks may exchange something
        checkpoint["loader"]["faults"] = dict(faults_of_all(runner))
        with first_alone() as first:
            if first:
                path = checkpoint_path(runner.run.checkpoints, runner.iter)
                advice = f"{runner.run.last_good()}; make room, then go on with --resume"
                runner.run.writer.write(path, checkpoint, self.keep, advice)
        self.saved, self.saved_at = runner.iter, time.monotonic()

    def after_train(self, runner) -> None:
        self.exchange.collect()
        self.save(runner)
        runner.run.writer.wait()


class SignalHook(Hook):
    """Signals let the step finish and the run save: SIGTERM, SIGUSR1 (SLURM's warning), Ctrl-C, a lost terminal.

    torchrun passes on to its processes what a scheduler has sent to them already, so the same signal comes twice or
    more; only a second Ctrl-C without torchrun ends the run at once. Several processes stop after the same step: what
    one of them received in step n, all know after step n + 1.
    """

    priority = "VERY_HIGH"
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self):
        self.received: int | None = None
        self.previous: dict = {}
        self.exchange = Exchange()

    def before_train(self, runner) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self.previous = {number: signal.signal(number, self.note) for number in self.numbers}

    def note(self, number, frame) -> None:
        if self.received == number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise SystemExit(128 + number)
        self.received = self.received or number

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        received = self.exchange.largest(self.received or 0)
        if received:
            self.received = received
            runner.train_loop.stop = True

    def after_train(self, runner) -> None:
        self.exchange.collect()
        if not runner.train_loop.stop:
            self.received = None  # it came with the last step, after which there is nothing to stop
        self.restore()

    def restore(self) -> None:
        """Gives the signals back to whom they belonged."""
        while self.previous:
            signal.signal(*self.previous.popitem())

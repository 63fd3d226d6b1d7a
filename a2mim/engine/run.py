"""A run from a recipe to what it hands over: what `tools/pretrain.py`, `finetune.py` and `refine.py` call."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from mmengine.dist import get_dist_info, is_main_process

from a2mim.checkpoints import list_checkpoints
from a2mim.data import Access
from a2mim.engine import folder
from a2mim.engine.assembly import Run, build_loader, build_runner
from a2mim.engine.config import changed as with_changes
from a2mim.engine.config import load_with_origins
from a2mim.engine.cores import choose_workers, core_for_data
from a2mim.engine.failures import explained
from a2mim.engine.finetuning import Finetuning
from a2mim.engine.fsdp import check_divided, is_divided
from a2mim.engine.hooks import SignalHook
from a2mim.engine.loggers import options_of
from a2mim.engine.memory import OutOfMemory, is_out_of_memory
from a2mim.engine.optim import check_optimizer
from a2mim.engine.pretraining import Pretraining
from a2mim.engine.records import Launch, Request, ResumePoint
from a2mim.engine.refine.refining import Refining
from a2mim.engine.report import announce, describe_run, report, say
from a2mim.engine.report_hook import write_page
from a2mim.engine.resuming import check_test_set, find_resumed, take_up
from a2mim.engine.runner import TrainRunner
from a2mim.engine.state import with_own_faults
from a2mim.engine.trial import find_accumulate
from a2mim.evaluation.shown import Record
from a2mim.export import check_targets
from a2mim.files import telling_full_disk, write_json
from a2mim.processes.group import leave_together, set_timeout, start_processes, stop_processes
from a2mim.processes.leading import lead
from a2mim.report import brief
from a2mim.text import first_line

TaskClass: TypeAlias = type[Pretraining] | type[Finetuning] | type[Refining]


def pretrain(
    config,
    data=None,
    work_dir=None,
    *,
    test_data=None,
    laptop: bool | None = None,
    resume: bool | str = False,
    next_epoch: bool = False,
    num_workers: int | None = None,
    device: str | None = None,
    access: Access | None = None,
    **overrides,
) -> dict:
    """Runs a recipe and returns the run's summary (also in summary.json).

    Args:
        config: a recipe: its path, the name of one that ships with a2mim, or its settings as a nested dictionary, such
            as `a2mim.recipe_for` returns.
        data: what to train on, see `a2mim.data.open_dataset`, which also takes data sets and pipelines of your own;
            None takes the built-in photographs, at laptop scale.
        work_dir: the run's folder; None takes the first free one of `runs/<recipe>`, `runs/<recipe>-2`, …
        test_data: labelled images that the encoder is judged on before and after, with `data`'s labels; None takes the
            test split of `data`, where it has one.
        laptop: run the recipe's laptop block; None means exactly when there is no `data`.
        resume: go on from the newest readable checkpoint of `work_dir` (or of the newest `runs/<recipe>`), with the
            settings and the data of that run, except for what is given now. "auto": go on if `work_dir` holds a run
            of this very recipe and data, else start there; implied where torchrun restarts the processes.
        next_epoch: with `resume`: where the data, the global batch or the seed are others now, give up the rest of the
            epoch and start the next one with them; without it they are refused.
        num_workers: data processes; None chooses.
        device: "cpu", "cuda", …; None takes a GPU where there is one.
        access: how remote data are reached, what is done about bad shards; None: the defaults of `a2mim.data.Access`.
        overrides: dotted setting -> value.

    Raises:
        ValueError, FileNotFoundError: bad input, before anything is written.
        FloatingPointError: the loss or the weights are not finite; names the last good checkpoint.

    Examples:
        >>> summary = a2mim.pretrain("tiny.py", "photographs", "runs/tiny")
        >>> summary["status"], summary["steps"]
        ('finished', 2)
    """
    request = Request.of(config, data, test_data, laptop)
    recipe = config if isinstance(config, Mapping) else None
    launch = Launch(work_dir, resume, next_epoch, num_workers, device, access, overrides, recipe)
    return carry_out(Pretraining, request, launch)


def finetune(
    config,
    source=None,
    data=None,
    work_dir=None,
    *,
    test_data=None,
    laptop: bool | None = None,
    resume: bool | str = False,
    next_epoch: bool = False,
    num_workers: int | None = None,
    device: str | None = None,
    access: Access | None = None,
    **overrides,
) -> dict:
    """Trains an encoder end to end with a classifier on it, and returns the run's summary (also in summary.json).

    Args:
        config: a fine-tuning recipe: its path, the name of one that ships with a2mim, its settings as a nested
            dictionary, or the name of a fine-tuning protocol.
        source: the encoder, as `a2mim.weights.loading.load_encoder` takes it; a resumed run needs none.
        data: labelled training images; None takes the built-in photographs, at laptop scale.
        test_data: labelled test images, judged with `data`'s labels every few epochs and at the end; None takes the
            test split of `data`, where it has one.
        work_dir, laptop, resume, next_epoch, num_workers, device, access, overrides: as in `pretrain`.

    Raises:
        ValueError, FileNotFoundError: bad input, before anything is written.
        FloatingPointError: the loss or the weights are not finite; names the last good checkpoint.

    Examples:
        >>> tuned = a2mim.finetune("tiny_finetune.py", "runs/tiny", "photographs", "runs/tuned")
        >>> tuned["result"]["n_test"]
        8
    """
    request = Request.of(config, data, test_data, laptop, source)
    recipe = config if isinstance(config, Mapping) else None
    launch = Launch(work_dir, resume, next_epoch, num_workers, device, access, overrides, recipe)
    return carry_out(Finetuning, request, launch)


def refine(
    source=None,
    data=None,
    work_dir=None,
    *,
    config="refine/last_third",
    test_data=None,
    laptop: bool | None = None,
    resume: bool | str = False,
    next_epoch: bool = False,
    num_workers: int | None = None,
    device: str | None = None,
    access: Access | None = None,
    **overrides,
) -> dict:
    """Refines a pre-trained encoder by contrast of two crops, and returns the run's summary (also in summary.json).

    Args:
        source: the encoder, as `a2mim.weights.loading.load_encoder` takes it; a resumed run needs none.
        data: images; None takes the built-in photographs, at laptop scale.
        config: a refinement recipe: its path, the name of one that ships with a2mim, or its settings as a nested
            dictionary.
        test_data: labelled images that the encoder is judged on before and after, with `data`'s labels; None takes the
            test split of `data`, where it has one.
        work_dir, laptop, resume, next_epoch, num_workers, device, access, overrides: as in `pretrain`.

    Raises:
        ValueError, FileNotFoundError: bad input, before anything is written.
        FloatingPointError: the loss or the weights are not finite; names the last good checkpoint.

    Examples:
        >>> refined = a2mim.refine("runs/tiny", "photographs", "runs/refined", config="tiny_refine.py")
        >>> refined["status"], refined["steps"]
        ('finished', 2)
    """
    request = Request.of(config, data, test_data, laptop, source)
    recipe = config if isinstance(config, Mapping) else None
    launch = Launch(work_dir, resume, next_epoch, num_workers, device, access, overrides, recipe)
    return carry_out(Refining, request, launch)


def carry_out(task_class: TaskClass, request: Request, launch: Launch) -> dict:
    """Runs a task from its preparation to its summary."""
    started, before = time.time(), torch.are_deterministic_algorithms_enabled()
    try:
        run, resume_point = prepare(task_class, request, launch)
        with core_for_data(run.num_workers, run.device, bool(run.request.laptop)):
            runner = _begin(run, resume_point)
            del resume_point  # a checkpoint is as large as the model and its optimiser
            summary = _train(run, runner, started)
        del runner  # holds the process group, whose threads must end before the interpreter does
        leave_together()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or isinstance(error, OutOfMemory):
            raise
        raise OutOfMemory(
            "too little memory to begin or to end the run: raise accumulate, or lower global_batch_size, data.img_size"
            f" or --num-workers ({first_line(error)})"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
        folder.release()
        stop_processes()
    return summary


def _begin(run: Run, resume_point: ResumePoint | None) -> TrainRunner:
    """Takes the run's folder and builds its runner; a folder that is then not used is removed."""
    run.folder = folder.claim(run.folder, run.request.name)
    try:
        runner = build_runner(run, resume_point)
    except BaseException:
        folder.remove_unused(run.folder)
        raise
    if resume_point:
        say(f"resuming from {resume_point.path}, step {resume_point.step} of {run.max_steps}")
    return runner


def _train(run: Run, runner: TrainRunner, started: float) -> Record:
    """Trains to the end or to a signal; returns the run's summary."""
    signals = runner.hook("signals", SignalHook)
    with telling_full_disk(run.claimed, "checkpoints that were written are whole; make room, then --resume"):
        try:
            runner.train()
        except (RuntimeError, MemoryError) as error:
            told = explained(error, run, runner.iter + 1)
            if told is None:
                raise
            raise told from error
        finally:
            run.writer.close()
            signals.restore()
        return Record(_close(run, runner, signals, started), show=partial(brief, run.claimed))


def _close(run: Run, runner: TrainRunner, signals: SignalHook, started: float) -> dict:
    """Exports the results of the run; writes, prints and returns its summary."""
    summary = describe_run(runner, started)
    if signals.received:
        saved = str(list_checkpoints(run.checkpoints)[-1])
        summary |= {"status": "stopped", "signal": signals.received, "checkpoint": saved}
    else:
        summary |= {"status": "finished"}
        task = run.task
        with runner.whole(averaged=True) as averaged:
            helpers = {} if is_main_process() else task.helpers(averaged)
            summary |= lead(lambda: task.hand_over(averaged, run.claimed), helpers)
    if is_main_process():
        write_json(run.claimed / "summary.json", summary)
        report(summary, runner, write_page(run.claimed) if run.settings.log.report else None)
    return summary


def prepare(task_class: TaskClass, request: Request, launch: Launch) -> tuple[Run, ResumePoint | None]:
    """The run and the point it resumes from. Checks everything that can be wrong, and writes nothing."""
    if launch.resume not in (True, False, "auto"):
        raise ValueError(f"--resume {launch.resume!r}: give --resume alone, or --resume auto")
    kind, device = task_class.settings_class, None
    named = request.data is not None or request.test_data is not None
    if launch.goes_on:
        device = start_processes(launch.device)
        where = find_resumed(launch, request)
    else:
        where = None
        if launch.next_epoch:
            raise ValueError("--next-epoch says how to go on with a run: add --resume, or leave it out")
        folder.refuse_used(launch.work_dir)
    resumed = take_up(kind, request, launch, where) if where else None
    if resumed:
        request, settings, origins = resumed.request, resumed.settings, resumed.origins
    else:
        if request.laptop is None:
            request = replace(request, laptop=request.data is None)
        recipe = launch.recipe_of(request)
        settings, origins = load_with_origins(recipe, launch.overrides, bool(request.laptop), kind, say_note)
    check_optimizer(settings.optimizer.type)
    options_of(settings.log)  # refuses a logger that is not there, before anything is written
    if settings.export:
        check_targets(settings.export)
    device = device or start_processes(launch.device)
    set_timeout(settings.processes.timeout_minutes)
    if is_divided(settings, get_dist_info()[1]):
        check_divided(settings)
    elif settings.processes.strategy == "fsdp":
        say_note("one process divides nothing, so processes.strategy='fsdp' changes nothing here")
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it; nothing on a CPU
    torch.backends.cudnn.benchmark = not settings.deterministic
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts, after this
        torch.use_deterministic_algorithms(True)
    point = resumed.point if resumed else None
    saved = point.meta if point else None
    data: Any = task_class.open(settings, request, saved, launch.access)
    workers = choose_workers(launch.num_workers, device, bool(request.laptop))
    loader = build_loader(data.train_set, data.settings, device, workers, data.augmentation)
    changed = list(resumed.changed) if resumed else []
    if point:
        changed += check_test_set(point.meta, data.test_set, named or launch.next_epoch)
        state = with_own_faults(point.checkpoint["loader"], *get_dist_info())
        changed += loader.load_state_dict(state, launch.next_epoch)
    torch.manual_seed(settings.seed)
    task = task_class(data, request, device, saved)
    notes = settle_accumulate(task, device, origins)
    chosen = resumed.folder if resumed else Path(launch.work_dir) if launch.work_dir else None
    run = Run(task.settings, chosen, request, device, loader, task, workers)
    run.origins, run.notes = origins, notes
    if resumed and point:
        run.changes = [*resumed.changes, *([{"step": point.step, "changed": changed}] if changed else [])]
    announce(run)
    say(*(f"  memory   {note}" for note in notes))
    if changed:
        say("  changed  " + "; ".join(changed))
    return run, point


def settle_accumulate(task: Any, device: torch.device, origins: dict[str, str]) -> list[str]:
    """Replaces accumulate="auto" in a `Task`'s settings by the number of a trial step; returns a sentence about it."""
    if task.settings.accumulate != "auto":
        return []
    found = find_accumulate(task, device, *get_dist_info())
    task.settings = with_changes(task.settings, {"accumulate": found.accumulate})
    origins["accumulate"] = "trial step"
    return [found.says]


def say_note(note: str) -> None:
    say(f"note: {note}")

"""A run from a recipe to what it hands over: what `tools/pretrain.py` and `tools/finetune.py` call."""

from __future__ import annotations

import time
from os import PathLike
from pathlib import Path

import torch
from mmengine.dist import get_dist_info, is_main_process

from a2mim.checkpoints import list_checkpoints, read_newest
from a2mim.data import Access
from a2mim.data.asked import recall
from a2mim.engine import folder
from a2mim.engine.assembly import Run, build_loader, build_runner, choose_workers
from a2mim.engine.config import differences, load_config, settle
from a2mim.engine.optim import check_optimizer
from a2mim.engine.pretraining import Pretraining
from a2mim.engine.report import announce, describe_run, report, say
from a2mim.engine.runner import leave_together, start_processes, stop_processes
from a2mim.engine.setting_groups import Settings
from a2mim.engine.state import with_own_faults
from a2mim.engine.stored import read_settings
from a2mim.export import check_targets
from a2mim.files import write_json


def pretrain(
    config,
    data=None,
    work_dir=None,
    *,
    test_data=None,
    laptop: bool | None = None,
    resume: bool = False,
    next_epoch: bool = False,
    num_workers: int | None = None,
    device: str | None = None,
    access: Access | None = None,
    **overrides,
) -> dict:
    """Runs a recipe and returns the run's summary (also in summary.json).

    Args:
        config: path of a recipe.
        data: what to train on, see `a2mim.data.open_dataset`, which also takes data sets and pipelines of your own;
            None takes the built-in photographs, at laptop scale.
        work_dir: the run's folder; None takes the first free one of runs/<recipe>, runs/<recipe>-2, …
        test_data: labelled images that the encoder is judged on before and after, with `data`'s labels; None takes the
            test split of `data`, where it has one.
        laptop: run the recipe's laptop block; None means exactly when there is no `data`.
        resume: go on from the newest readable checkpoint of `work_dir` (or of the newest runs/<recipe>), with the
            settings and the data of that run, except for what is given now.
        next_epoch: with `resume`: where the data, the global batch or the seed are others now, give up the rest of the
            epoch and start the next one with them; without it they are refused.
        num_workers: data processes; None chooses.
        device: "cpu", "cuda", …; None takes a GPU where there is one.
        access: how remote data are reached, what is done about bad shards; None: the defaults of `a2mim.data.Access`.
        overrides: dotted setting -> value.

    Raises:
        ValueError, FileNotFoundError: bad input, before anything is written.
        FloatingPointError: the loss or the weights are not finite; names the last good checkpoint.
    """
    asked = {"config": str(config), "data": _plain(data), "test_data": _plain(test_data), "laptop": laptop}
    return carry_out(Pretraining, asked, work_dir, resume, next_epoch, num_workers, device, overrides, access)


def finetune(
    config,
    source=None,
    data=None,
    work_dir=None,
    *,
    test_data=None,
    laptop: bool | None = None,
    resume: bool = False,
    next_epoch: bool = False,
    num_workers: int | None = None,
    device: str | None = None,
    access: Access | None = None,
    **overrides,
) -> dict:
    """Trains an encoder end to end with a classifier on it, and returns the run's summary (also in summary.json).

    Args:
        config: path of a fine-tuning recipe, or the name of a fine-tuning protocol.
        source: the encoder, as `a2mim.weights.loading.load_encoder` takes it; a resumed run needs none.
        data: labelled training images; None takes the built-in photographs, at laptop scale.
        test_data: labelled test images, judged with `data`'s labels every few epochs and at the end; None takes the
            test split of `data`, where it has one.
        work_dir, laptop, resume, next_epoch, num_workers, device, access, overrides: as in `pretrain`.

    Raises:
        ValueError, FileNotFoundError: bad input, before anything is written.
        FloatingPointError: the loss or the weights are not finite; names the last good checkpoint.
    """
    from a2mim.engine.finetuning import Finetuning

    asked = {"config": str(config), "source": source and str(source), "laptop": laptop}
    asked |= {"data": _plain(data), "test_data": _plain(test_data)}
    return carry_out(Finetuning, asked, work_dir, resume, next_epoch, num_workers, device, overrides, access)


def carry_out(
    kind, asked: dict, work_dir, resume: bool, next_epoch: bool, num_workers, device, overrides: dict, access=None
) -> dict:
    """Runs a task from its preparation to its summary. kind: the class of the task."""
    started = time.time()
    try:
        run, found = prepare(kind, asked, work_dir, resume, next_epoch, num_workers, device, overrides, access)
        run.folder = folder.claim(run.folder, Path(asked["config"]).stem)
        runner = build_runner(run, found[1] if found else None)
        if found:
            say(f"resuming from {found[0]}, step {found[1]['meta']['step']} of {run.max_steps}")
        runner.train()
        summary = describe_run(runner, started)
        if runner.signals.received:
            saved = str(list_checkpoints(runner.checkpoints)[-1])
            summary |= {"status": "stopped", "signal": runner.signals.received, "checkpoint": saved}
        else:
            summary |= {"status": "finished"}
            if is_main_process():
                summary |= run.task.hand_over(runner)
        if is_main_process():
            write_json(run.folder / "summary.json", summary)
            report(summary, runner)
        del runner  # holds the process group, whose threads must end before the interpreter does
        leave_together()
    finally:
        folder.release()
        stop_processes()
    return summary


def import_again(recipe: str, settings: Settings, kind: type[Settings]) -> None:
    """Imports a resumed run's own parts: those that the recipe on the command line names, never those of the folder."""
    if settings.custom_imports is None:
        return
    try:
        typed = load_config(recipe, kind=kind).custom_imports
    except FileNotFoundError:
        typed = None
    if typed != settings.custom_imports:
        say(f"  note     the run imports {settings.custom_imports}; its recipe, named on the command line, would do so")


def say_note(note: str) -> None:
    say(f"note: {note}")


def _plain(source):
    """Paths as strings; a data set that is given as an object stays one."""
    if isinstance(source, list | tuple):
        return [str(part) for part in source]
    return str(source) if isinstance(source, PathLike) else source


def prepare(
    kind, asked: dict, work_dir, resume: bool, next_epoch: bool, num_workers, device, overrides: dict, access=None
):
    """(the run, (path, checkpoint) to go on from or None). What can be wrong is found here, and nothing is written."""
    where, found, changed = None, None, []
    if resume:
        where = folder.find_run(work_dir, Path(asked["config"]).stem)
        recalled = recall(where)
        asked |= {key: value for key, value in recalled.items() if asked.get(key) is None}
        stored = read_settings(where)
        before = settle(stored, where, None, False, kind.settings_class)
        settings = settle(stored, where, overrides, False, kind.settings_class)
        changed = differences(before.model_dump(), settings.model_dump())
        import_again(asked["config"], settings, kind.settings_class)
        found = read_newest(where / "checkpoints")
        if asked.get("source") != recalled.get("source", asked.get("source")):
            changed.append(f"not the source: the run has begun, from {recalled['source']}")
            asked["source"] = recalled["source"]
    elif next_epoch:
        raise ValueError("--next-epoch says how to go on with a run: add --resume, or leave it out")
    else:
        folder.refuse_used(work_dir)
        if asked["laptop"] is None:
            asked["laptop"] = asked["data"] is None
        settings = load_config(asked["config"], overrides, asked["laptop"], kind.settings_class, say_note)
        where = Path(work_dir) if work_dir else None
    check_optimizer(settings.optimizer.type)
    if settings.export:
        check_targets(settings.export)
    chosen = start_processes(device)
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it; nothing on a CPU
    torch.backends.cudnn.benchmark = True
    task = kind(settings, asked, chosen, found and found[1]["meta"], access or Access())
    settings = task.settings  # completed
    loader = build_loader(task.train_set, settings, chosen, num_workers, task.augmentation())
    if found:
        changed += loader.load_state_dict(with_own_faults(found[1]["loader"], *get_dist_info()), next_epoch)
    torch.manual_seed(settings.seed)
    task.build()
    run = Run(settings, where, asked, chosen, loader, task, choose_workers(num_workers, chosen))
    announce(run)
    if changed:
        say("  changed  " + "; ".join(changed))
    return run, found

"""A pre-training run from a recipe to an encoder: what `tools/pretrain.py` calls."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook
from mmengine.model import revert_sync_batchnorm

from a2mim.checkpoints import list_checkpoints, read_newest
from a2mim.data import match_labels, open_dataset
from a2mim.engine import folder, judging
from a2mim.engine.assembly import Run, build_loader, build_mim, build_runner
from a2mim.engine.config import differences, load_config
from a2mim.engine.report import announce, describe_run, report, say
from a2mim.engine.runner import leave_together, start_processes, stop_processes
from a2mim.export import check_targets, export_timm_folder
from a2mim.export.receipt import write_json


def pretrain(
    config,
    data=None,
    work_dir=None,
    *,
    test_data=None,
    laptop: bool | None = None,
    resume: bool = False,
    num_workers: int | None = None,
    device: str | None = None,
    **overrides,
) -> dict:
    """Runs a recipe and returns the run's summary (also in summary.json).

    Args:
        config: path of a recipe.
        data: what to train on, see `a2mim.data.open_dataset`; None takes the built-in photographs, at laptop scale.
        work_dir: the run's folder; None takes the first free one of runs/<recipe>, runs/<recipe>-2, …
        test_data: labelled images that the encoder is judged on before and after, with `data`'s labels; None takes the
            test split of `data`, where it has one.
        laptop: run the recipe's laptop block; None means exactly when there is no `data`.
        resume: go on from the newest readable checkpoint of `work_dir` (or of the newest runs/<recipe>), with the
            settings and the data of that run, except for what is given now.
        num_workers: data processes; None chooses.
        device: "cpu", "cuda", …; None takes a GPU where there is one.
        overrides: dotted setting -> value.

    Raises:
        ValueError, FileNotFoundError: bad input, before anything is written.
        FloatingPointError: the loss or the weights are not finite; names the last good checkpoint.
    """
    started = time.time()
    asked = {"config": str(config), "data": _plain(data), "test_data": _plain(test_data), "laptop": laptop}
    try:
        run = prepare(asked, work_dir, resume, num_workers, device, overrides)
        found = read_newest(run.folder / "checkpoints") if resume else None
        untrained = copy.deepcopy(run.model.encoder)  # judged at the end, so that training starts at once
        run.folder = folder.claim(run.folder, Path(config).stem)
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
                summary |= hand_over(run, untrained, averaged_encoder(runner))
        if is_main_process():
            write_json(run.folder / "summary.json", summary)
            report(summary, run.folder)
        del runner  # holds the process group, whose threads must end before the interpreter does
        leave_together()
    finally:
        folder.release()
        stop_processes()
    return summary


def _plain(source):
    """A source as JSON can keep it."""
    return [str(part) for part in source] if isinstance(source, list | tuple) else source and str(source)


def prepare(asked: dict, work_dir, resume: bool, num_workers, device, overrides: dict) -> Run:
    """Everything that can be wrong is found here, and nothing is written."""
    where, changed = None, []
    if resume:
        where = folder.find_run(work_dir, Path(asked["config"]).stem)
        asked |= {key: value for key, value in folder.recall(where).items() if asked.get(key) is None}
        settings = load_config(where / "config.py", overrides, strict=False)
        changed = differences(load_config(where / "config.py"), settings)
    else:
        folder.refuse_used(work_dir)
        if asked["laptop"] is None:
            asked["laptop"] = asked["data"] is None
        settings = load_config(asked["config"], overrides, asked["laptop"])
        where = Path(work_dir) if work_dir else None
    if settings["export"]:
        check_targets(settings["export"])
    chosen = start_processes(device)
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it; nothing on a CPU
    torch.backends.cudnn.benchmark = True
    train_set, test_set = open_sets(asked["data"], asked["test_data"], settings["data"]["in_chans"])
    loader = build_loader(train_set, settings, chosen, num_workers)
    torch.manual_seed(settings["seed"])
    run = Run(settings, where, asked, chosen, train_set, test_set, loader, build_mim(settings))
    announce(run)
    if changed:
        say("  changed  " + "; ".join(changed))
    return run


def open_sets(data, test_data, in_chans: int):
    """(training set, test set or None): the test set is the one named, else the source's own test split, if any."""
    source = "photos" if data is None else data
    train = open_dataset(source, "train", in_chans)
    if test_data is not None:
        return train, match_labels(train, open_dataset(test_data, "test", in_chans))
    if "test" in train.splits:
        test = open_dataset(source, "test", in_chans)
        if (train.labels >= 0).any() and (test.labels >= 0).any():
            return train, match_labels(train, test)
    return train, None


def averaged_encoder(runner):
    """The encoder to hand over: of the averaged weights, where they are kept; without SyncBatchNorm, which only several
    processes together can run.
    """
    model = runner.mim
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            model = hook.ema_model.module
    return revert_sync_batchnorm(model.encoder)


def hand_over(run: Run, untrained, trained) -> dict:
    """Exports the encoder, then judges it beside the untrained one; what is to be said of both."""
    judge = judging.Judge(run.settings, run.train_set, run.test_set, run.device)
    receipt = None
    if run.settings["export"]:
        data = run.settings["data"]
        preprocessing = {k: data[k] for k in ("mean", "std", "interpolation")} | {"img_size": trained.img_size}
        receipt = export_timm_folder(
            trained.model,
            trained.arguments(),
            preprocessing,
            run.folder / "encoder",
            batches=judge.calibration_batches(),
            source=str(run.folder),
        )
    judged = judging.compare(judge(untrained, "before"), judge(trained, "after"))
    return {"export": receipt, "judged": judged}

"""A pre-training run from a recipe to an encoder: what `tools/pretrain.py` calls."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook

from a2mim.data import open_dataset
from a2mim.engine import judging
from a2mim.engine.assembly import build_loader, build_mim, build_runner, first_images
from a2mim.engine.checkpoint import list_checkpoints, read_newest
from a2mim.engine.config import load_config
from a2mim.engine.folder import choose_run_dir, write_config, write_json
from a2mim.engine.report import announce, describe_run, report
from a2mim.engine.runner import start_processes, stop_processes
from a2mim.export import TARGETS, export_timm_folder


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
        test_data: labelled images that the encoder is judged on before and after, with `data`'s labels.
        laptop: run the recipe's laptop block; None means exactly when there is no `data`.
        resume: go on from the newest readable checkpoint of `work_dir` (or of the newest runs/<recipe>).
        num_workers: data processes; None chooses.
        device: "cpu", "cuda", …; None takes a GPU where there is one.
        overrides: dotted setting -> value.

    Raises:
        ValueError, FileNotFoundError: bad input, before anything is written.
        FloatingPointError: the loss or the weights are not finite; names the last good checkpoint.
    """
    started = time.time()
    laptop = data is None if laptop is None else laptop
    settings = load_config(config, overrides, laptop)
    chosen = start_processes(device)
    set_up_torch(settings)
    check_targets(settings["export"])
    run_dir = choose_run_dir(work_dir, Path(config).stem, resume)
    train_set, test_set = open_sets(data, test_data, settings)
    loader = build_loader(train_set, settings, chosen, num_workers)
    torch.manual_seed(settings["seed"])
    model = build_mim(settings)
    max_steps = settings["schedule"]["epochs"] * len(loader)
    announce(config, settings, laptop, data is None, train_set, model, max_steps, chosen)

    found = read_newest(run_dir / "checkpoints") if resume else None
    judge = judging.Judge(settings, train_set, test_set, chosen)
    untrained = copy.deepcopy(model.encoder)  # judged at the end, so that training starts at once
    write_config(run_dir, settings)
    pictures = first_images(test_set or train_set, settings)
    runner = build_runner(model, loader, settings, run_dir, max_steps, chosen, found, pictures)
    if found and is_main_process():
        print(f"resuming from {found[0]}, step {found[1]['meta']['step']} of {max_steps}", flush=True)
    runner.train()

    summary = describe_run(runner, settings, config, train_set, started)
    if runner.signal_hook.received:
        saved = str(list_checkpoints(runner.checkpoints)[-1])
        summary |= {"status": "stopped", "signal": runner.signal_hook.received, "checkpoint": saved}
    else:
        summary |= {"status": "finished"}
        if is_main_process():
            encoder = averaged_encoder(runner)
            summary |= judging.compare(judge(untrained, "before"), judge(encoder, "after"))
            summary |= {"export": export_encoder(encoder, judge, settings, run_dir)}
    if is_main_process():
        write_json(run_dir / "summary.json", summary)
        report(summary, run_dir, config, data, test_data)
    stop_processes()
    return summary


def set_up_torch(settings: dict) -> None:
    """Settings of the process that do not change results beyond rounding."""
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it; nothing on a CPU
    torch.backends.cudnn.benchmark = True


def check_targets(names: list[str]) -> None:
    unknown = set(names) - set(TARGETS)
    if unknown:
        raise ValueError(f"export={names}: {', '.join(unknown)} is no target; choose from {', '.join(TARGETS)}, or []")


def open_sets(data, test_data, settings: dict):
    """(training set, test set or None): the test set is the one named, else the source's own test split where it has
    one.
    """
    chans, source = settings["data"]["in_chans"], "photos" if data is None else data
    train = open_dataset(source, "train", chans)
    if test_data is None and "test" in train.splits:
        test_data = source
    return train, None if test_data is None else open_dataset(test_data, "test", chans)


def averaged_encoder(runner):
    """The encoder to hand over: of the averaged weights, where they are kept."""
    model = getattr(runner.model, "module", runner.model)
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            model = hook.ema_model.module
    return model.encoder


def export_encoder(encoder, judge, settings: dict, run_dir: Path) -> dict | None:
    """Writes run_dir/encoder, loaded back and compared in a fresh process; returns the receipt."""
    if not settings["export"]:
        return None
    data = settings["data"]
    preprocessing = {k: data[k] for k in ("mean", "std", "interpolation")} | {"img_size": encoder.img_size}
    calibration = judge.calibration_batches()
    folder = run_dir / "encoder"
    return export_timm_folder(encoder.model, encoder.arguments(), preprocessing, folder, calibration, str(run_dir))

"""A pre-training run from a recipe to an encoder: what `tools/pretrain.py` calls."""

from __future__ import annotations

import copy
import json
import os
import pprint
import re
import time
import warnings
from itertools import count
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook

import a2mim
from a2mim.data import EvalLoader, TrainLoader, open_dataset
from a2mim.engine import hooks, judging
from a2mim.engine.checkpoint import list_checkpoints, read_newest
from a2mim.engine.config import load_config
from a2mim.engine.optim import StepWrapper, build_optimizer, build_schedule
from a2mim.engine.report import announce, describe_run, report
from a2mim.engine.runner import PretrainRunner, start_processes, stop_processes
from a2mim.export import TARGETS, export_timm_folder
from a2mim.mim import MIM
from a2mim.registry import MODELS


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


def choose_run_dir(work_dir, name: str, resume: bool) -> Path:
    """The run's folder, the same on every process; never one that would overwrite another run. Nothing is created
    yet.
    """
    choice = None
    if is_main_process():  # alone: a process that looks later may see what this one has begun to write
        try:
            choice = named_run_dir(Path(work_dir), resume) if work_dir else default_run_dir(Path("runs"), name, resume)
        except (ValueError, FileNotFoundError) as error:
            choice = error
    if torch.distributed.is_initialized():
        shared = [choice]
        torch.distributed.broadcast_object_list(shared, src=0)
        choice = shared[0]
    if isinstance(choice, Exception):
        raise choice
    return choice


def named_run_dir(folder: Path, resume: bool) -> Path:
    holds_run = (folder / "config.py").exists()
    if resume and not holds_run:
        raise FileNotFoundError(f"--resume: {folder} holds no run; leave out --resume to start one there")
    if holds_run and not resume:
        raise ValueError(f"{folder} holds a run already; add --resume to go on with it, or choose another --work-dir")
    return folder


def default_run_dir(root: Path, name: str, resume: bool) -> Path:
    """The first free one of root/name, root/name-2, …; to resume, the newest of them."""
    if not resume:
        return next(p for n in count(1) if not (p := root / (name if n == 1 else f"{name}-{n}")).exists())
    runs = [
        p.parent for p in root.glob(f"{name}*/config.py") if re.fullmatch(rf"{re.escape(name)}(-\d+)?", p.parent.name)
    ]
    if not runs:
        raise FileNotFoundError(f"--resume: {root.absolute()} holds no run of {name}; name one with --work-dir")
    return max(runs, key=lambda folder: (folder / "config.py").stat().st_mtime)


def open_sets(data, test_data, settings: dict):
    """(training set, test set or None): the test set is the one named, else the source's own test split where it has
    one.
    """
    chans, source = settings["data"]["in_chans"], "photos" if data is None else data
    train = open_dataset(source, "train", chans)
    if test_data is None and "test" in train.splits:
        test_data = source
    return train, None if test_data is None else open_dataset(test_data, "test", chans)


def build_loader(dataset, settings: dict, device: torch.device, num_workers: int | None) -> TrainLoader:
    data, batch = settings["data"], settings["global_batch_size"]
    world = int(os.environ.get("WORLD_SIZE", 1))
    pieces = world * settings["accumulate"]
    if batch % pieces:
        raise ValueError(
            f"global_batch_size={batch} is not divisible by {world} processes x accumulate={settings['accumulate']};"
            f" choose {batch // pieces * pieces or pieces} or {(batch // pieces + 1) * pieces}"
        )
    if num_workers is None:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on a Mac
        cores = usable // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        num_workers = min(8, cores) if device.type == "cuda" else 0
    return TrainLoader(
        dataset,
        data["img_size"],
        batch,
        scale=data["scale"],
        ratio=data["ratio"],
        hflip=data["hflip"],
        interpolation=data["interpolation"],
        transforms=data["transforms"],
        seed=settings["seed"],
        rank=int(os.environ.get("RANK", 0)),
        world_size=world,
        num_workers=num_workers,
    )


def build_mim(settings: dict) -> MIM:
    """The row of the table as a module; what follows from the data is not typed a second time in the recipe."""
    row, data = copy.deepcopy(settings["model"]), settings["data"]
    row = {"type": "MIM", "mean": data["mean"], "std": data["std"], **row}
    if isinstance(row.get("encoder"), dict):
        cell = row["masking"].get("mask_patch_size", 32) if isinstance(row.get("masking"), dict) else 32
        derived = {"type": "MaskedEncoder", "img_size": data["img_size"], "in_chans": data["in_chans"]}
        row["encoder"] = derived | {"mask_patch_size": cell} | row["encoder"]
    return MODELS.build(row)


def build_runner(model, loader, settings, run_dir, max_steps, device, found, pictures) -> PretrainRunner:
    model.to(device)
    if settings["channels_last"]:
        model.to(memory_format=torch.channels_last)
    if settings["sync_batchnorm"] and torch.distributed.is_initialized() and device.type == "cuda":
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model.encoder.model)
    if settings["compile"]:
        model.encoder.compile()
    optimizer = build_optimizer(model, settings["optimizer"], settings["global_batch_size"])
    schedule = build_schedule(optimizer, settings["schedule"], len(loader), max_steps)
    amp = choose_amp(settings["amp"], device)
    wrapper = StepWrapper(optimizer, amp, device.type, settings["accumulate"], settings["clip_grad"])
    saving, log = settings["checkpoint"], settings["log"]
    every = saving["every_steps"] or saving["every_epochs"] * len(loader)
    signal_hook = hooks.SignalHook()
    all_hooks = [
        hooks.ScheduleHook(schedule),
        hooks.LogHook(log["every_steps"]),
        hooks.PictureHook(pictures, log["pictures"]),
        hooks.CheckpointHook(every, saving["keep"]),
        signal_hook,
    ]
    if settings["ema"]:
        all_hooks.append(EMAHook(momentum=settings["ema"]))
    meta = {
        "encoder": model.encoder.arguments(),
        "pixels": {k: settings["data"][k] for k in ("mean", "std", "interpolation")},
        "version": a2mim.__version__,
    }
    state = found[1] if found else None
    runner = PretrainRunner(model, loader, wrapper, all_hooks, run_dir, settings, max_steps, device, meta, state)
    runner.signal_hook = signal_hook
    return runner


def choose_amp(amp: str | None, device: torch.device) -> str | None:
    """ "auto" is bf16 on a GPU that computes in it, and float32 elsewhere: on a CPU without AVX-512 bf16 is 10–22
    times slower.
    """
    if amp == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    if amp and device.type == "cpu" and "avx512" not in _cpu_flags():
        warnings.warn(f"amp={amp!r} on this CPU, which has no AVX-512, is far slower than float32", stacklevel=2)
    return amp


def _cpu_flags() -> str:
    return torch.backends.cpu.get_cpu_capability().lower()


def first_images(dataset, settings: dict) -> torch.Tensor:
    """(rows, C, H, W) uint8, spread evenly over the set: what the pictures show."""
    rows = min(settings["log"]["rows"], len(dataset))
    indices = [i * len(dataset) // rows for i in range(rows)]
    size = settings["data"]["img_size"]
    loader = EvalLoader(dataset, size, resize=None, batch_size=rows, indices=indices)
    return next(iter(loader))["images"]


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


def write_config(run_dir: Path, settings: dict) -> None:
    """Every setting in force, as a recipe that can be run again."""
    if is_main_process():
        run_dir.mkdir(parents=True, exist_ok=True)
        lines = [f"{key} = {pprint.pformat(value, sort_dicts=False)}\n" for key, value in settings.items()]
        (run_dir / "config.py").write_text("".join(lines))


def write_json(path: Path, content: dict) -> None:
    """Atomic."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)

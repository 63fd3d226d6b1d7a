"""What a run says of itself: its first lines, its summary, its last lines."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import mmengine
import timm
import torch
from mmengine.dist import is_main_process

import a2mim
from a2mim.engine.hooks import LogHook
from a2mim.engine.judging import sentence


def announce(config, settings: dict, laptop: bool, built_in: bool, dataset, model, max_steps: int, device) -> None:
    """The first lines: what runs, on what, and how to run it as written."""
    if not is_main_process():
        return
    encoder, size = model.encoder, settings["data"]["img_size"]
    frozen = sum(encoder.model.get_parameter(name).numel() for name in encoder.frozen)
    total = sum(p.numel() for p in encoder.model.parameters())
    epochs, batch = settings["schedule"]["epochs"], settings["global_batch_size"]
    lines = [f"a2mim {a2mim.__version__}: {Path(config).stem}{' at laptop scale' if laptop else ''}, on {device}"]
    if built_in:
        lines += [
            "  no --data given: this is the recipe's laptop scale on built-in photographs, not the recipe as written;",
            "  for that, add --data FOLDER or --data 'shards-{000000..000099}.tar'",
        ]
    lines += [
        f"  data     {dataset.describe()}",
        f"  encoder  {encoder.name} at {size} px, {total / 1e6:.2f} M parameters, mask token at {encoder.site!r}",
        f"  plan     {epochs} epochs = {max_steps} steps of {batch} images",
    ]
    if frozen:
        share = f"{frozen / total:.1%} of the parameters ({len(encoder.frozen)} tensors)"
        lines.append(f"  frozen   {share}: no loss on the feature map reaches them; names in summary.json")
    print("\n".join(lines), flush=True)


def describe_run(runner, settings: dict, config, dataset, started: float) -> dict:
    """The part of summary.json that every run has."""
    log = next(hook for hook in runner.hooks if isinstance(hook, LogHook))
    first, last = log.first or {}, log.last
    encoder = getattr(runner.model, "module", runner.model).encoder
    return {
        "recipe": str(config),
        "steps": runner.iter,
        "of_steps": runner.max_iters,
        "seconds": round(time.time() - started, 1),
        "loss": {"first": first.get("loss"), "last": last.get("loss"), "mean_colour": last.get("baseline")},
        "images_per_second": last.get("images_per_second"),
        "data": {"source": dataset.describe(), "images": len(dataset), "unreadable": dict(runner.loader.faults)},
        "encoder": encoder.arguments(),
        "device": str(runner.device),
        "processes": runner.world_size,
        "versions": {m.__name__: m.__version__ for m in (a2mim, torch, timm, mmengine)},
        "seed": settings["seed"],
    }


def report(summary: dict, run_dir: Path, config, data, test_data) -> None:
    """The last lines on the screen."""
    lines = stopped_lines(summary, run_dir, config, data) if summary["status"] == "stopped" else []
    print("\n".join(lines or finished_lines(summary, run_dir, data, test_data)), flush=True)


def stopped_lines(summary: dict, run_dir: Path, config, data) -> list[str]:
    source = [] if data is None else ["--data", str(data)]
    again = shlex.join(["python", "tools/pretrain.py", str(config), *source, "--work-dir", str(run_dir), "--resume"])
    return [
        f"stopped by a signal after step {summary['steps']} of {summary['of_steps']}, saved in {summary['checkpoint']}",
        f"go on with: {again}",
    ]


def finished_lines(summary: dict, run_dir: Path, data, test_data) -> list[str]:
    encoder, loss = run_dir / "encoder" if summary["export"] else None, summary["loss"]
    pictures = sorted((run_dir / "reconstructions").glob("*.png"))
    data, test_data = (data or "photos", test_data or ("photos" if data is None else "TEST_DATA"))
    judging = ["--data", str(data), "--test-data", str(test_data)]
    lines = [f"finished {summary['steps']} steps in {summary['seconds']:.0f} s"]
    if loss["first"] is not None:
        baseline = f"always answering the image's mean colour: {loss['mean_colour']:.4f}"
        lines.append(f"  loss     {loss['first']:.4f} -> {loss['last']:.4f} ({baseline})")
    lines += [*judged_lines(summary["judged"]), f"  picture  {pictures[-1]}", f"  summary  {run_dir / 'summary.json'}"]
    if encoder is None:
        return lines
    return [
        *lines,
        f"  encoder  {encoder}",
        "next:",
        f'  timm.create_model("local-dir:{encoder}", pretrained=True, num_classes=0)',
        "  " + shlex.join(["python", "tools/linear_probe.py", str(run_dir), *judging]),
        "  " + shlex.join(["python", "tools/knn.py", str(run_dir), *judging]),
    ]


def judged_lines(judged: dict | None) -> list[str]:
    """Before and after, and what may honestly be said of the difference."""
    if judged is None:
        return ["  judged   not at all: that needs labels in --data and a labelled --test-data"]
    return [
        f"  before   {sentence(judged['before'])}",
        f"  after    {sentence(judged['after'])}",
        *(f"  {verdict}" for verdict in judged["verdicts"]),
        "  Both networks frozen and calibrated alike, one seed. Masked pre-training shows in a linear probe before it",
        "  shows in k-NN, its weakest judge; a few minutes on small data say that it learns, not how good it gets.",
    ]

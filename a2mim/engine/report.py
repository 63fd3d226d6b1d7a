"""What a run says of itself: its first lines, its summary, its last lines."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import mmengine
import timm
import torch
from mmengine.dist import is_main_process

import a2mim
from a2mim.engine.hooks import LogHook


def say(*lines: str) -> None:
    """Prints on the first process. A reader that has gone away (`| head`) never ends a run."""
    if not is_main_process():
        return
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the rest of the process


def announce(run) -> None:
    """The first lines: what runs, on what, and how to run it as written."""
    encoder, settings = run.model.encoder, run.settings
    epochs, batch, size = settings["schedule"]["epochs"], settings["global_batch_size"], settings["data"]["img_size"]
    frozen = sum(encoder.model.get_parameter(name).numel() for name in encoder.frozen)
    total = sum(p.numel() for p in encoder.model.parameters())
    scale = " at laptop scale" if run.asked["laptop"] else ""
    lines = [f"a2mim {a2mim.__version__}: {Path(run.asked['config']).stem}{scale}, on {run.device}"]
    if run.asked["data"] is None:
        lines += [
            "  no --data given: this is the recipe's laptop scale on built-in photographs, not the recipe as written;",
            "  for that, add --data FOLDER or --data 'shards-{000000..000099}.tar'",
        ]
    lines += [
        f"  data     {run.train_set.describe()}",
        f"  encoder  {encoder.name} at {size} px, {total / 1e6:.2f} M parameters, mask token at {encoder.site!r}",
        f"  plan     {epochs} epochs = {run.max_steps} steps of {batch} images",
    ]
    if frozen:
        share = f"{frozen / total:.1%} of the parameters ({len(encoder.frozen)} tensors)"
        lines.append(f"  frozen   {share}: no loss on the feature map reaches them; names in summary.json")
    say(*lines)


def describe_run(runner, started: float) -> dict:
    """The part of summary.json that every run has."""
    run, log = runner.run, next(hook for hook in runner.hooks if isinstance(hook, LogHook))
    first, last = log.first or {}, log.last
    return {
        "asked": run.asked,
        "steps": runner.iter,
        "of_steps": runner.max_iters,
        "seconds": round(time.time() - started, 1),
        "loss": {"first": first.get("loss"), "last": last.get("loss"), "mean_colour": last.get("baseline")},
        "images_per_second": last.get("images_per_second"),
        "data": {
            "source": run.train_set.describe(),
            "images": len(run.train_set),
            "fingerprint": run.train_set.fingerprint,
            "unreadable": dict(run.loader.faults.unreadable),
            "damaged_but_decoded": sum(run.loader.faults.values()) - sum(run.loader.faults.unreadable.values()),
        },
        "encoder": run.model.encoder.arguments(),
        "device": str(run.device),
        "processes": runner.world_size,
        "versions": {m.__name__: m.__version__ for m in (a2mim, torch, timm, mmengine)},
        "seed": run.settings["seed"],
    }


def report(summary: dict, folder: Path) -> None:
    """The last lines on the screen."""
    say(*(stopped_lines if summary["status"] == "stopped" else finished_lines)(summary, folder))


def stopped_lines(summary: dict, folder: Path) -> list[str]:
    again = ["python", "tools/pretrain.py", summary["asked"]["config"], "--work-dir", str(folder), "--resume"]
    return [
        f"stopped by a signal after step {summary['steps']} of {summary['of_steps']}, saved in {summary['checkpoint']}",
        f"go on with: {shlex.join(again)}",
    ]


def sentence(results: dict) -> str:
    """Both protocols with their 95 % intervals."""
    return ", ".join(
        f"{name} {r['top1']:.1f} % ({r['interval'][0]:.1f}–{r['interval'][1]:.1f})"
        for name, r in (("linear probe", results["linear"]), ("k-NN", results["knn"]))
    )


def finished_lines(summary: dict, folder: Path) -> list[str]:
    loss, asked = summary["loss"], summary["asked"]
    pictures = sorted((folder / "reconstructions").glob("*.png"))
    data = "photos" if asked["data"] is None else asked["data"]
    test_data = asked["test_data"] or (data if summary["judged"] else "TEST_DATA")
    judging = ["--data", *_words(data), "--test-data", *_words(test_data)]
    lines = [f"finished {summary['steps']} steps in {summary['seconds']:.0f} s"]
    if loss["first"] is not None:
        baseline = f"always answering the image's mean colour: {loss['mean_colour']:.4f}"
        lines.append(f"  loss     {loss['first']:.4f} -> {loss['last']:.4f} ({baseline})")
    lines += [*judged_lines(summary["judged"]), f"  picture  {pictures[-1]}", f"  summary  {folder / 'summary.json'}"]
    if not summary["export"]:
        return lines
    encoder = folder / "encoder"
    return [
        *lines,
        f"  encoder  {encoder}",
        "next:",
        f'  timm.create_model("local-dir:{encoder}", pretrained=True, num_classes=0)',
        "  " + shlex.join(["python", "tools/linear_probe.py", str(folder), *judging]),
        "  " + shlex.join(["python", "tools/knn.py", str(folder), *judging]),
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


def _words(source) -> list[str]:
    return [str(part) for part in source] if isinstance(source, list | tuple) else [str(source)]

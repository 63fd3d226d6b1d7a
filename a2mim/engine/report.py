"""What a run says of itself: its first lines, its summary, its last lines."""

from __future__ import annotations

import time
from pathlib import Path

import mmengine
import timm
import torch
from mmengine.dist import is_main_process

import a2mim
from a2mim.engine.hooks import LogHook


def announce(config, settings: dict, laptop: bool, built_in: bool, dataset, model, max_steps: int, device) -> None:
    """The first lines: what runs, on what, and how to run it as written."""
    if not is_main_process():
        return
    encoder, size = model.encoder, settings["data"]["img_size"]
    frozen = sum(encoder.model.get_parameter(name).numel() for name in encoder.frozen)
    total = sum(p.numel() for p in encoder.model.parameters())
    lines = [f"a2mim {a2mim.__version__}: {Path(config).stem}{' at laptop scale' if laptop else ''}, on {device}"]
    if built_in:
        lines.append(
            "  no --data given: the laptop scale of this recipe, on built-in photographs (not the recipe as written;"
        )
        lines.append("  for that, add --data FOLDER or --data 'shards-{000000..000099}.tar')")
    lines.append(f"  data     {dataset.describe()}")
    lines.append(
        f"  encoder  {encoder.name} at {size} px, {total / 1e6:.2f} M parameters, mask token at {encoder.site!r}"
    )
    if frozen:
        lines.append(
            f"           {frozen / total:.1%} of them are out of the loss's reach and stay frozen (listed in summary.json)"
        )
    lines.append(
        f"  plan     {settings['schedule']['epochs']} epochs = {max_steps} steps of {settings['global_batch_size']} images"
    )
    print("\n".join(lines), flush=True)


def describe_run(runner, settings: dict, config, dataset, started: float) -> dict:
    """The part of summary.json that every run has."""
    log = next(hook for hook in runner.hooks if isinstance(hook, LogHook))
    encoder = getattr(runner.model, "module", runner.model).encoder
    return {
        "recipe": str(config),
        "steps": runner.iter,
        "of_steps": runner.max_iters,
        "seconds": round(time.time() - started, 1),
        "loss": {"first": (log.first or {}).get("loss"), **{k: log.last.get(k) for k in ("loss", "baseline")}},
        "images_per_second": log.last.get("images_per_second"),
        "data": {"source": dataset.describe(), "images": len(dataset), "unreadable": dict(runner.loader.faults)},
        "encoder": encoder.arguments(),
        "device": str(runner.device),
        "processes": runner.world_size,
        "versions": {m.__name__: m.__version__ for m in (a2mim, torch, timm, mmengine)},
        "seed": settings["seed"],
    }


def report(summary: dict, run_dir: Path, config, data, test_data) -> None:
    """The last lines on the screen."""
    if summary["status"] == "stopped":
        where = f" --data {_quoted(data)}" if data is not None else ""
        print(
            f"stopped by a signal after step {summary['steps']} of {summary['of_steps']}, saved as {summary['checkpoint']};"
            f" go on with: python tools/pretrain.py {config}{where} --work-dir {run_dir} --resume",
            flush=True,
        )
        return
    loss = summary["loss"]
    lines = [f"finished {summary['steps']} steps in {summary['seconds']:.0f} s"]
    if loss["loss"] is not None:
        lines.append(
            f"  loss     {loss['first']:.4f} -> {loss['loss']:.4f} (always answering the mean colour: {loss['baseline']:.4f})"
        )
    lines += judged_lines(summary["judged"])
    pictures = sorted((run_dir / "reconstructions").glob("*.png"))
    lines += [
        f"  picture  {pictures[-1] if pictures else '-'}",
        f"  summary  {run_dir / 'summary.json'}",
        f"  encoder  {run_dir / 'encoder'} (timm loads it with equal features: {summary['export'].get('largest_difference', 0):.1e})",
        "next:",
        f'  timm.create_model("local-dir:{run_dir / "encoder"}", pretrained=True, num_classes=0)',
        f"  python tools/linear_probe.py {run_dir} --data {_quoted(data or 'photos')} --test-data {_quoted(test_data or 'photos' if data is None else test_data or 'TEST')}",
        f"  python tools/knn.py {run_dir} --data {_quoted(data or 'photos')} --test-data {_quoted(test_data or 'photos' if data is None else test_data or 'TEST')}",
    ]
    print("\n".join(lines), flush=True)


def judged_lines(judged: dict | None) -> list[str]:
    """Before and after, and one honest sentence."""
    if judged is None:
        return ["  judged   not: that needs labels in --data and a labelled --test-data"]
    lines = []
    for when in ("before", "after"):
        r = judged[when]
        lines.append(
            f"  {when:<8} linear probe {r['linear']['top1']:.1f} % ({r['linear']['interval'][0]:.1f}–{r['linear']['interval'][1]:.1f}),"
            f" k-NN {r['knn']['top1']:.1f} % ({r['knn']['interval'][0]:.1f}–{r['knn']['interval'][1]:.1f}),"
            f" 95 % intervals, {r['knn']['n_test']} test images"
        )
    return [*lines, *(f"  {sentence}" for sentence in judged["verdicts"])]


def _quoted(source) -> str:
    text = str(source)
    return f"'{text}'" if any(c in text for c in "{}* ") else text

"""Folders of runs as a run leaves them, made by hand in milliseconds."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

LAYOUT = {"columns": ["image", "masked", "reconstruction", "filled in"], "tile": [32, 32], "gap": 4, "header": 24}


def judged(before=50.0, after=60.0, word="gain", points=10.0) -> dict:
    """What summary.json says of two probes before and after."""
    probe = lambda top1: {"top1": top1, "interval": [top1 - 3, top1 + 3]}  # noqa: E731
    change = {"points": points, "low": points - 3, "high": points + 3, "word": word}
    return {
        "before": {"linear": probe(before), "knn": probe(before)},
        "after": {"linear": probe(after), "knn": probe(after)},
        "differences": [{"name": name, **change} for name in ("linear probe", "k-NN")],
    }


def make_run(
    folder: Path, steps: int = 60, status: str = "finished", name: str = "xcit_nano", baseline: float = 0.5, **summary
) -> Path:
    """A run's folder with a log, settings, two sheets of pictures, one receipt."""
    (folder / "reconstructions").mkdir(parents=True)
    lines = [
        {"step": step, "epoch": step / 10, "loss": 1.0 / step, "loss_l1": 0.9 / step, "loss_fourier": 0.1 / step}
        | {"baseline": baseline, "lr": 1e-3, "grad_norm": 0.3, "images_per_second": 100.0, "data_share": 0.01}
        | {"memory_gb": 1.5}
        for step in range(1, steps + 1)
    ]
    lines.append({"step": steps, "epoch": 6.0, "knn_top1": 54.0})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = {"status": status, "steps": steps, "of_steps": steps, "seconds": 130.0, "seed": 0, "device": "cpu"}
    whole |= {"encoder": {"name": name}, "versions": {"torch": "2.13.0"}, "asked": {"config": "configs/a2mim_xcit.py"}}
    whole |= {"loss": {"baseline": baseline}, "data": {"source": "photos", "images": 4096, "unreadable": {}}}
    (folder / "summary.json").write_text(json.dumps(whole | summary))
    (folder / "settings.json").write_text(json.dumps({"data": {"img_size": 64}, "seed": 0, "laptop": {}}))
    (folder / "reconstructions" / "layout.json").write_text(json.dumps(LAYOUT))
    generator = np.random.default_rng(0)
    for step in (0, steps):
        sheet = generator.integers(0, 255, (24 + 2 * 32 + 4, 4 * 32 + 3 * 4, 3), np.uint8)
        Image.fromarray(sheet).save(folder / "reconstructions" / f"step_{step:08d}.png")
    (folder / "encoder").mkdir()
    receipt = {"target": "timm", "mode": "loaded", "largest_difference": 1e-7, "written": "2026-01-01T00:00:00"}
    (folder / "encoder" / "receipt.json").write_text(json.dumps(receipt))
    return folder

"""timm: config.json, which rebuilds the model without a classifier, and its weights in model.safetensors.

The same two files are what a model hub takes for `timm.create_model("hf-hub:…")`.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save

from a2mim.export.target import Facts, Subject, Target, Written
from a2mim.files import write_json
from a2mim.pixels import Preprocessing
from a2mim.wiring.timm_models import on_meta

CROP_PCT = 0.875  # 224 of a short side of 256, as the evaluation protocols crop
FROM_TIMM = ("fixed_input_size", "first_conv", "classifier", "crop_mode")  # facts of the architecture

CODE = """\
import numpy as np
import timm
import torch

{import_a2mim}images = torch.from_numpy(np.load("reference.npz")["images"])  # yours: normalised, float32 (B, {size})
model = timm.create_model("local-dir:.", pretrained=True, num_classes=0).eval()
preprocess = timm.data.create_transform(**timm.data.resolve_model_data_config(model))  # of a PIL image
with torch.no_grad():
    pooled = model(images)  # (B, {width})
    unpooled = model.forward_features(images)
"""
OURS = "import a2mim  # which makes the architecture known to timm\n\n"


def write(subject: Subject, folder: Path) -> Written:
    arguments = {"name": subject.name, "model_args": subject.model_args, "frozen": subject.frozen}
    config = write_timm_folder(subject.model, arguments, subject.preprocessing, folder, subject.license)
    return Written(
        subject.outputs,
        ("timm", "safetensors", *ours(subject)),
        subject.tensors,
        "model.safetensors",
        contract=("timm", {"architecture": subject.name, "model_args": config["model_args"]}),
        notes=NOTES,
    )


def fill(code: str, facts: Facts) -> str:
    """The lines with the input's size and the width; they import a2mim only if timm needs it for this architecture."""
    return code.format(size=facts.size, width=facts.width, import_a2mim=OURS if facts.import_a2mim else "")


def ours(subject: Subject) -> tuple[str, ...]:
    """What the lines then need besides the target's own packages."""
    return ("a2mim",) if subject.ours else ()


NOTES = """\
Any of timm's own arguments goes with it: `num_classes=10` for a new classifier, `features_only=True`, `in_chans=1`,
`img_size=…` where the architecture takes one. Mind that timm only logs a warning about keys that do not fit.
"""
TARGET = Target("timm", write, partial(fill, CODE))


def write_timm_folder(
    model: Any, arguments: dict, preprocessing: Preprocessing | Mapping, folder: Path, license: str
) -> dict:
    """Writes both files and returns the config; for the arguments see `export_timm_folder`."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    # not save_file, which gives the file to its owner alone whatever the umask
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    cfg = model.pretrained_cfg
    preprocessing = Preprocessing.of(preprocessing)
    channels = preprocessing.channels
    size = list(preprocessing.img_size)
    config = {
        "architecture": cfg["architecture"],
        "num_classes": 0,
        "num_features": model.num_features,
        "global_pool": _global_pool(model),
        "model_args": full_model_args(model, arguments["model_args"], channels),
        "pretrained_cfg": {
            **{key: cfg.get(key) for key in FROM_TIMM},
            "input_size": [channels, *size],
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_pct or CROP_PCT,
            "num_classes": 0,
            "pool_size": _pool_size(cfg, size),
            "custom_load": False,
            "license": license or None,
        },
    }
    write_json(folder / "config.json", config)
    return config


def full_model_args(model: Any, model_args: dict, channels: int) -> dict:
    """What timm.create_model needs beyond the name; never num_classes: transformers forbids it there."""
    args = {key: value for key, value in model_args.items() if key != "num_classes"}
    if channels != 3:
        args["in_chans"] = channels
    pool = _global_pool(model)
    if "global_pool" in args or not pool:
        return args
    try:
        on_meta(model.pretrained_cfg["architecture"], **args, global_pool=pool)
    except Exception:  # some architectures fix their pooling; the check in a fresh process decides
        return args
    return args | {"global_pool": pool}


def _global_pool(model: Any) -> str:
    """timm's name of the pooling before the classifier, "" where it has none."""
    for owner in (model, getattr(model, "head", None)):
        pool = getattr(owner, "global_pool", None)
        name = getattr(pool, "pool_type", pool)
        if isinstance(name, str):
            return name
    return ""


def _pool_size(cfg: dict, size: list[int]) -> list[int] | None:
    """The last feature map at this image size, where timm states it for its own."""
    if not cfg.get("pool_size"):
        return None
    return [math.ceil(p * s / own) for p, s, own in zip(cfg["pool_size"], size, cfg["input_size"][1:], strict=True)]

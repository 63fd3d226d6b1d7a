"""A recipe: read, checked and overridden, without importing torch.

Every key that a recipe may set stands in `DEFAULTS`; anything else is an error with the nearest right name. Parts
(dicts with `type`) are checked against their class when they are built.
"""

from __future__ import annotations

import ast
import copy
from difflib import get_close_matches
from pathlib import Path

DEFAULTS = {
    "model": None,  # the row of the table: see a2mim.mim.MIM
    "data": {
        "img_size": 224,  # pixels, square
        "in_chans": 3,
        "mean": (0.485, 0.456, 0.406),  # per channel, in units of 0..1
        "std": (0.229, 0.224, 0.225),
        "scale": (0.67, 1.0),  # RandomResizedCrop: share of the image's area
        "ratio": (3 / 4, 4 / 3),  # and width / height
        "hflip": 0.5,  # probability
        "interpolation": "bilinear",  # or "bicubic"
        "transforms": [],  # mmcv transforms between decode and crop, on the uint8 image
    },
    "global_batch_size": 2048,  # images an optimiser step, over all processes
    "accumulate": 1,  # pieces that a process cuts its share of the batch into
    "optimizer": {
        "type": "adamw",  # any name of timm.optim
        "base_lr": 1.5e-4,  # per 256 images
        "betas": (0.9, 0.999),
        "weight_decay": 0.05,  # not on norms, biases, tokens, position embeddings, LayerScale
        "token_lr_scale": 1.0,  # learning rate of mask token and gamma, relative
    },
    "schedule": {
        "type": "cosine",  # or "step"
        "epochs": 300,
        "warmup_epochs": 10,
        "min_lr": 1e-5,  # cosine
        "decay_epochs": [],  # step: epochs at which the rate is multiplied by
        "decay_rate": 0.1,
    },
    "clip_grad": None,  # largest L2 norm of the gradient
    "amp": "auto",  # None, "bf16", "fp16"; "auto" is bf16 on a GPU that has it, else None
    "ema": None,  # momentum of the averaged weights, e.g. 1e-4
    "compile": False,
    "channels_last": False,
    "sync_batchnorm": False,  # across GPUs
    "checkpoint": {"every_steps": None, "every_epochs": 1, "keep": 3},
    "log": {"every_steps": 10, "pictures": 5, "rows": 6, "tensorboard": False},  # pictures: how many in a run
    "judge": {"train_images": 5000, "test_images": 2000, "k": 20},  # at most; needs labels and a test set
    "export": ["timm"],  # what the encoder is written for at the end, with a receipt each
    "seed": 0,
    "laptop": {},  # dotted key -> value: what changes when the recipe runs at laptop scale
    "custom_imports": None,  # mmengine's: modules that register your own parts
}
_CHOICES = {
    "schedule.type": ("cosine", "step"),
    "data.interpolation": ("bilinear", "bicubic"),
    "amp": ("auto", None, "bf16", "fp16"),
}
_AT_LEAST_ONE = (
    "data.img_size",
    "data.in_chans",
    "global_batch_size",
    "accumulate",
    "schedule.epochs",
    "checkpoint.keep",
    "log.every_steps",
)


def load_config(path, options: dict | None = None, laptop: bool = False) -> dict:
    """Reads a recipe and returns every setting.

    Args:
        path: an mmengine config file in Python.
        options: dotted key -> value, applied last; each must change something.
        laptop: apply the recipe's `laptop` block first.

    Raises:
        FileNotFoundError, ValueError: in one sentence.
    """
    config = complete(read(path), path)
    if laptop:
        if not config["laptop"]:
            raise ValueError(f"{path} has no laptop block; give it one, or give --data to run the recipe as written")
        for key, value in config["laptop"].items():
            assign(config, key, value)
    for key, value in (options or {}).items():
        if assign(config, key, value) == value:
            raise ValueError(f"{key}={value!r} changes nothing: it is the recipe's own value; leave the option out")
    check_values(config)
    return config


def read(path) -> dict:
    """The file's own settings, its `_base_` included."""
    from mmengine.config import Config

    if not Path(path).is_file():
        near = get_close_matches(Path(path).name, [p.name for p in Path(path).parent.glob("*.py")], n=2)
        hint = f"; did you mean {' or '.join(str(Path(path).parent / n) for n in near)}?" if near else ""
        raise FileNotFoundError(f"there is no config file {path}{hint}")
    try:
        return Config.fromfile(str(path)).to_dict()
    except SyntaxError as error:
        raise ValueError(f"{path} is not valid Python: {error.msg}, line {error.lineno}") from error
    except (KeyError, TypeError, NameError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a config: {error}") from error


def complete(given: dict, path="the config") -> dict:
    """Lays the given settings over `DEFAULTS`; unknown keys are errors."""
    config = copy.deepcopy(DEFAULTS)
    for key, value in given.items():
        _check_known(key, DEFAULTS, path)
        if isinstance(DEFAULTS[key], dict) and key != "laptop":
            if not isinstance(value, dict):
                raise ValueError(f"{path}: {key} must be a dict of {', '.join(DEFAULTS[key])}, not {value!r}")
            for inner in value:
                _check_known(inner, DEFAULTS[key], f"{path}: {key}")
            config[key].update(value)
        else:
            config[key] = value
    if config["model"] is None:
        raise ValueError(f"{path} sets no model; see configs/a2mim_xcit.py for one")
    return config


def assign(config: dict, dotted: str, value):
    """Sets config[a][b]... for the key "a.b..." (numbers index lists) and returns what stood there before.

    A new key is allowed only inside `model`, whose parts check their arguments when they are built.
    """
    *path, last = dotted.split(".")
    place = config
    for depth, name in enumerate([*path, last]):
        keys = range(len(place)) if isinstance(place, list) else place
        index = int(name) if isinstance(place, list) and name.isdigit() else name
        argument_of_part = isinstance(place, dict) and path[:1] == ["model"] and depth == len(path)
        if index not in keys and not argument_of_part:
            known = [".".join([*path[:depth], str(k)]) for k in keys] if isinstance(place, dict | list) else []
            raise ValueError(f"there is no setting {dotted!r}{_nearest(dotted, known)}")
        if depth < len(path):
            place = place[index]
            if not isinstance(place, dict | list):
                raise ValueError(f"there is no setting {dotted!r}: {'.'.join(path[: depth + 1])} is {place!r}")
    before = place.get(index, _MISSING) if isinstance(place, dict) else place[index]
    place[index] = value
    return before


_MISSING = object()


def parse_options(pairs: list[str]) -> dict:
    """["a.b=1", …] -> {"a.b": 1}: Python literals, true/false/none in any case, anything else a string."""
    options = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise ValueError(f"--cfg-options takes key=value, not {pair!r}")
        options[key] = _literal(text)
    return options


def _literal(text: str):
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def check_values(config: dict) -> None:
    """What can be said of the numbers without building anything."""
    for key, allowed in _CHOICES.items():
        if _get(config, key) not in allowed:
            raise ValueError(f"{key}={_get(config, key)!r} is not one of {', '.join(map(repr, allowed))}")
    for key in _AT_LEAST_ONE:
        value = _get(config, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{key}={value!r} must be a whole number of at least 1")
    for key in ("optimizer.base_lr", "optimizer.weight_decay", "schedule.min_lr", "schedule.warmup_epochs"):
        value = _get(config, key)
        if not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{key}={value!r} must be a number of at least 0")
    mean, std, chans = (_get(config, f"data.{k}") for k in ("mean", "std", "in_chans"))
    if not len(mean) == len(std) == chans:
        raise ValueError(
            f"data.mean has {len(mean)} and data.std {len(std)} values for data.in_chans={chans}; give one each"
        )
    check_cell(config)


def check_cell(config: dict) -> None:
    """The mask cell must divide the image: known before torch is imported."""
    masking, size = config["model"].get("masking", {}), config["data"]["img_size"]
    cell = masking.get("mask_patch_size", 32) if isinstance(masking, dict) else 1
    if isinstance(cell, int) and cell > 0 and size % cell:
        fits = [c for c in range(1, size + 1) if size % c == 0]
        near = sorted(fits, key=lambda c: abs(c - cell))[:2]
        raise ValueError(
            f"model.masking.mask_patch_size={cell} does not divide data.img_size={size};"
            f" set the cell to {' or '.join(map(str, near))}, or the image to {(size // cell + 1) * cell} pixels"
        )


def _get(config: dict, dotted: str):
    for name in dotted.split("."):
        config = config[name]
    return config


def _check_known(key: str, known: dict, where) -> None:
    if key not in known:
        raise ValueError(f"{where}: unknown setting {key!r}{_nearest(key, known)}")


def _nearest(name: str, known) -> str:
    close = get_close_matches(name, list(known), n=2)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known are {', '.join(known)}"

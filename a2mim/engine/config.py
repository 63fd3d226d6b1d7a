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


def _whole(least):
    return lambda v: type(v) is int and v >= least, f"a whole number of at least {least}"


def _number(least=0.0, most=float("inf"), above=False):
    def holds(v):
        return (
            isinstance(v, int | float)
            and not isinstance(v, bool)
            and (least < v if above else least <= v)
            and v <= most
        )

    bound = f"above {least:g}" if above else f"of at least {least:g}"
    return holds, f"a number {bound}" + (f" and at most {most:g}" if most < float("inf") else "")


def _pair(most, what):
    number, _ = _number(0, most)
    return lambda v: isinstance(v, list | tuple) and len(v) == 2 and all(map(number, v)), what


def _one_of(*allowed):
    return lambda v: v in allowed, f"one of {', '.join(map(repr, allowed))}"


def _list_of(kind, what):
    return lambda v: isinstance(v, list | tuple) and all(isinstance(x, kind) for x in v), f"a list of {what}"


def _or_none(rule):
    holds, what = rule
    return lambda v: v is None or holds(v), f"None or {what}"


_FLAG = _one_of(True, False)
_DICT = lambda v: isinstance(v, dict), "a dict"

RULES = {  # dotted setting -> (does it hold, what it must be)
    "model": _DICT,
    "data.img_size": _whole(1),
    "data.in_chans": _whole(1),
    "data.mean": _list_of(int | float, "numbers, one a channel"),
    "data.std": _list_of(int | float, "numbers, one a channel"),
    "data.scale": _pair(1, "two numbers from 0 to 1, the least and the greatest share of the area"),
    "data.ratio": _pair(float("inf"), "two numbers, the least and the greatest width / height"),
    "data.hflip": _number(0, 1),
    "data.interpolation": _one_of("bilinear", "bicubic"),
    "data.transforms": _list_of(object, "transforms"),
    "global_batch_size": _whole(1),
    "accumulate": _whole(1),
    "optimizer.type": (lambda v: isinstance(v, str), "the name of an optimiser of timm.optim"),
    "optimizer.base_lr": _number(),
    "optimizer.betas": _pair(1, "two numbers from 0 to 1"),
    "optimizer.weight_decay": _number(),
    "optimizer.token_lr_scale": _number(),
    "schedule.type": _one_of("cosine", "step"),
    "schedule.epochs": _whole(1),
    "schedule.warmup_epochs": _number(),
    "schedule.min_lr": _number(),
    "schedule.decay_epochs": _list_of(int, "epochs"),
    "schedule.decay_rate": _number(),
    "clip_grad": _or_none(_number(above=True)),
    "amp": _one_of("auto", None, "bf16", "fp16"),
    "ema": _or_none(_number(0, 1, above=True)),
    "compile": _FLAG,
    "channels_last": _FLAG,
    "sync_batchnorm": _FLAG,
    "checkpoint.every_steps": _or_none(_whole(1)),
    "checkpoint.every_epochs": _whole(1),
    "checkpoint.keep": _whole(1),
    "log.every_steps": _whole(1),
    "log.pictures": _whole(2),
    "log.rows": _whole(1),
    "log.tensorboard": _FLAG,
    "judge.train_images": _whole(1),
    "judge.test_images": _whole(1),
    "judge.k": _whole(1),
    "export": _list_of(str, "targets, e.g. ['timm'] or []"),
    "seed": _whole(0),
    "laptop": _DICT,
    "custom_imports": _or_none(_DICT),
}


def load_config(path, options: dict | None = None, laptop: bool = False, strict: bool = True) -> dict:
    """Reads a recipe and returns every setting.

    Args:
        path: an mmengine config file in Python.
        options: dotted key -> value, applied last.
        laptop: apply the recipe's `laptop` block first.
        strict: an option that changes nothing is an error, as it is most often a mistake.

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
        if assign(config, key, value) == value and strict and key != "seed":  # loops over seeds start somewhere
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
    except (ImportError, KeyError, TypeError, NameError, OSError) as error:
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
    if isinstance(DEFAULTS.get(dotted), dict) and dotted != "laptop":
        raise ValueError(
            f"{dotted} is a group; set what is in it: {', '.join(f'{dotted}.{k}' for k in DEFAULTS[dotted])}"
        )
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
    """What can be said of the settings without building anything."""
    for key, (holds, what) in RULES.items():
        value = _get(config, key)
        if not holds(value):
            raise ValueError(f"{key}={value!r} must be {what}")
    mean, std, chans = (_get(config, f"data.{k}") for k in ("mean", "std", "in_chans"))
    if not len(mean) == len(std) == chans:
        raise ValueError(
            f"data.mean has {len(mean)} and data.std {len(std)} values, data.in_chans={chans}; give one each"
        )
    warmup, epochs = config["schedule"]["warmup_epochs"], config["schedule"]["epochs"]
    if warmup >= epochs:
        raise ValueError(f"schedule.warmup_epochs={warmup} must be less than schedule.epochs={epochs}")
    encoder = config["model"].get("encoder")
    if not isinstance(encoder, dict) or not isinstance(encoder.get("name"), str):
        raise ValueError(f"model.encoder={encoder!r} must be a dict with the name of a timm model")
    losses = config["model"].get("losses")
    if not isinstance(losses, list | tuple) or not losses or not all(isinstance(loss, dict) for loss in losses):
        raise ValueError(f"model.losses={losses!r} must be a list of at least one loss, e.g. [dict(type='MaskedL1')]")
    check_cell(config)


def check_cell(config: dict) -> None:
    """The mask cell must divide the image: known before torch is imported."""
    masking, size = config["model"].get("masking"), config["data"]["img_size"]
    if not isinstance(masking, dict):
        raise ValueError(f"model.masking={masking!r} must be a dict, e.g. dict(type='BlockMask', mask_patch_size=32)")
    cell = masking.get("mask_patch_size", 32)
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


def differences(before: dict, now: dict, prefix: str = "") -> list[str]:
    """["a.b: 1 -> 2", …]: where two complete configs differ."""
    found = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return found

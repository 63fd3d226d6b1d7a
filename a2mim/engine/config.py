"""A recipe: read, checked and overridden, without importing torch.

Every key that a pre-training recipe may set stands in `DEFAULTS`, those of fine-tuning in finetune_config.py; anything
else is an error with the nearest right name. Parts (dicts with `type`) are checked against their class when they are
built.
"""

from __future__ import annotations

import ast
import copy
from difflib import get_close_matches
from pathlib import Path

from a2mim.engine.rules import COMMAND_OF, DICT, FLAG, Schema, list_of, number, one_of, or_none, pair, whole

DEFAULTS = {
    "model": None,  # the row of the table: see a2mim.mim.MIM
    "init_from": None,  # weights that the encoder starts from: whatever a2mim.weights.loading reads
    "allow_partial": False,  # of init_from: what the file lacks stays random
    "data": {
        "img_size": 224,  # pixels, square
        "in_chans": 3,
        "bits": None,  # 8 or 16 a value in the batches; None: what the first image has
        "exif": False,  # turn images as their EXIF orientation says
        "value_range": None,  # (least, greatest) value of arrays that are neither uint8 nor uint16
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
    "judge": {  # needs labels and a test set
        "train_images": 5000,  # at most, before and after
        "test_images": 2000,
        "k": 20,
        "every_epochs": 1,  # a small k-NN on the way, within 3 % of the time; None: not
        "images": None,  # of it; None: a 50th of the training images, from 500 to 10,000
    },
    "export": ["timm"],  # what the encoder is written for at the end, with a receipt each
    "seed": 0,
    "laptop": {},  # dotted key -> value: what changes when the recipe runs at laptop scale
    "custom_imports": None,  # mmengine's: modules that register your own parts
}


RULES = {  # dotted setting -> (does it hold, what it must be)
    "model": DICT,
    "init_from": (lambda v: v is None or isinstance(v, str), "None, or weights to start from, e.g. NAME:FILE"),
    "allow_partial": FLAG,
    "data.img_size": whole(1),
    "data.in_chans": whole(1),
    "data.bits": one_of(None, 8, 16),
    "data.exif": FLAG,
    "data.value_range": (
        lambda v: v is None or (isinstance(v, list | tuple) and len(v) == 2 and v[0] < v[1]),
        "None or two numbers, the least and the greatest value",
    ),
    "data.mean": list_of(int | float, "numbers, one a channel"),
    "data.std": list_of(int | float, "numbers, one a channel"),
    "data.scale": pair(1, "two numbers from 0 to 1, the least and the greatest share of the area"),
    "data.ratio": pair(float("inf"), "two numbers, the least and the greatest width / height"),
    "data.hflip": number(0, 1),
    "data.interpolation": one_of("bilinear", "bicubic"),
    "data.transforms": list_of(object, "transforms"),
    "global_batch_size": whole(1),
    "accumulate": whole(1),
    "optimizer.type": (lambda v: isinstance(v, str), "the name of an optimiser of timm.optim"),
    "optimizer.base_lr": number(),
    "optimizer.betas": pair(1, "two numbers from 0 to 1"),
    "optimizer.weight_decay": number(),
    "optimizer.token_lr_scale": number(),
    "schedule.type": one_of("cosine", "step"),
    "schedule.epochs": whole(1),
    "schedule.warmup_epochs": number(),
    "schedule.min_lr": number(),
    "schedule.decay_epochs": list_of(int, "epochs"),
    "schedule.decay_rate": number(),
    "clip_grad": or_none(number(above=True)),
    "amp": one_of("auto", None, "bf16", "fp16"),
    "ema": or_none(number(0, 1, above=True)),
    "compile": FLAG,
    "channels_last": FLAG,
    "sync_batchnorm": FLAG,
    "checkpoint.every_steps": or_none(whole(1)),
    "checkpoint.every_epochs": whole(1),
    "checkpoint.keep": whole(1),
    "log.every_steps": whole(1),
    "log.pictures": whole(2),
    "log.rows": whole(1),
    "log.tensorboard": FLAG,
    "judge.train_images": whole(1),
    "judge.test_images": whole(1),
    "judge.k": whole(1),
    "judge.every_epochs": or_none(whole(1)),
    "judge.images": or_none(whole(4)),
    "export": list_of(str, "targets, e.g. ['timm'] or []"),
    "seed": whole(0),
    "laptop": DICT,
    "custom_imports": or_none(DICT),
}


def load_config(
    path, options: dict | None = None, laptop: bool = False, strict: bool = True, schema: Schema | None = None
) -> dict:
    """Reads a recipe and returns every setting.

    Args:
        path: an mmengine config file in Python.
        options: dotted key -> value, applied last.
        laptop: apply the recipe's `laptop` block first.
        strict: an option that changes nothing is an error, as it is most often a mistake.
        schema: what kind of recipe it is; None: one for pre-training.

    Raises:
        FileNotFoundError, ValueError: in one sentence.
    """
    schema = schema or PRETRAIN
    given = (schema.read or read)(path)
    config = complete(given, path, schema, schema.under(given, options or {}))
    if laptop:
        if not config["laptop"]:
            raise ValueError(f"{path} has no laptop block; give it one, or give --data to run the recipe as written")
        for key, value in config["laptop"].items():
            assign(config, key, value, schema)
    for key, value in (options or {}).items():
        if (
            assign(config, key, value, schema) == value and strict and not key.endswith("seed")
        ):  # loops over seeds start somewhere
            raise ValueError(f"{key}={value!r} changes nothing: it is the recipe's own value; leave the option out")
    check_values(config, schema)
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


def complete(given: dict, path="the config", schema: Schema | None = None, under: dict | None = None) -> dict:
    """Lays the given settings over the defaults, with `under` (dotted) between them; unknown keys are errors."""
    schema = schema or PRETRAIN
    config = copy.deepcopy(schema.defaults)
    for key, value in (under or {}).items():
        assign(config, key, value, schema)
    for key, value in given.items():
        if key not in config and key in COMMAND_OF:
            raise ValueError(f"{path} sets {key!r}: it is a recipe for a2mim {COMMAND_OF[key]}, not {schema.command}")
        _check_known(key, schema.defaults, path)
        if isinstance(schema.defaults[key], dict) and key not in schema.open_groups:
            if not isinstance(value, dict):
                raise ValueError(f"{path}: {key} must be a dict of {', '.join(schema.defaults[key])}, not {value!r}")
            for inner in value:
                _check_known(inner, schema.defaults[key], f"{path}: {key}")
            config[key].update(value)
        else:
            config[key] = value
    for key in schema.required:
        if config[key] is None:
            raise ValueError(f"{path} sets no {key}; see {schema.example} for one")
    return config


def assign(config: dict, dotted: str, value, schema: Schema | None = None):
    """Sets config[a][b]... for the key "a.b..." (numbers index lists) and returns what stood there before.

    A new key is allowed only inside `model`, whose parts check their arguments when they are built.
    """
    defaults = (schema or PRETRAIN).defaults
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
    if isinstance(defaults.get(dotted), dict) and dotted != "laptop":
        raise ValueError(
            f"{dotted} is a group; set what is in it: {', '.join(f'{dotted}.{k}' for k in defaults[dotted])}"
        )
    before = place.get(index, _MISSING) if isinstance(place, dict) else place[index]
    place[index] = value
    return before


_MISSING = object()


def parse_options(pairs: list[str], flag: str = "--cfg-options") -> dict:
    """["a.b=1", …] -> {"a.b": 1}: Python literals, true/false/none in any case, anything else a string."""
    options = {}
    for option in pairs:
        key, separator, text = option.partition("=")
        if not separator or not key:
            raise ValueError(f"{flag} takes key=value, not {option!r}")
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


def check_values(config: dict, schema: Schema) -> None:
    """What can be said of the settings without building anything."""
    for key, (holds, what) in schema.rules.items():
        value = get(config, key)
        if not holds(value):
            raise ValueError(f"{key}={value!r} must be {what}")
    warmup, epochs = config["schedule"]["warmup_epochs"], config["schedule"]["epochs"]
    if warmup >= epochs:
        raise ValueError(f"schedule.warmup_epochs={warmup} must be less than schedule.epochs={epochs}")
    schema.check(config)


def check_pretraining(config: dict) -> None:
    """What belongs together in a pre-training recipe."""
    mean, std, chans = (get(config, f"data.{k}") for k in ("mean", "std", "in_chans"))
    if not len(mean) == len(std) == chans:
        raise ValueError(
            f"data.mean has {len(mean)} and data.std {len(std)} values, data.in_chans={chans}; give one each"
        )
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


PRETRAIN = Schema("pretrain", DEFAULTS, RULES, check_pretraining, required=("model",), example="configs/a2mim_xcit.py")


def get(config: dict, dotted: str):
    """config[a][b]... of "a.b..."."""
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

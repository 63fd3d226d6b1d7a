"""What a fine-tuning recipe may say: every setting there is, laid over the constants of the protocol that it names.

A protocol's constants stand in one place (a2mim/evaluation/protocols); here is where each of them goes.
"""

from __future__ import annotations

from a2mim.engine.config import DEFAULTS as PRETRAINING
from a2mim.engine.config import RULES as PRETRAINING_RULES
from a2mim.engine.config import get, read
from a2mim.engine.rules import FLAG, Schema, list_of, number, one_of, or_none, whole

SHARED = ("accumulate", "clip_grad", "amp", "ema", "compile", "channels_last", "sync_batchnorm", "checkpoint")
SHARED += ("seed", "custom_imports")

DEFAULTS = {
    "protocol": None,  # its constants are laid under what the recipe says
    "variant": None,  # of the protocol, mostly a size of model
    "classifier": {
        "pooling": "default",  # what the classifier reads: the encoder's own; or "avg", "token", … where timm knows it
        "norm": "default",  # "after": a ViT's last norm moves behind the pooling, as MAE has it
        "head_init_std": 0.0,  # of its weights, truncated normal, bias 0; 0: as timm has it
        "drop_path_rate": 0.0,
        "allow_partial": False,  # take a source that lacks some tensors of the model
    },
    "data": {
        "img_size": None,  # pixels, square; None: the source's own
        "test_size": None,  # of test images; None: img_size
        "in_chans": None,  # these three: None takes the source's own
        "mean": None,
        "std": None,
        **{key: PRETRAINING["data"][key] for key in ("bits", "exif", "value_range")},
        "crop_pct": 0.875,  # side of the test crop / short side of the image
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "hflip": 0.5,
        "interpolation": "bicubic",
        "transforms": [],
    },
    "augment": {
        "auto_augment": "",  # timm's words, e.g. "rand-m9-mstd0.5-inc1", or "trivial": torchvision's TrivialAugmentWide
        "color_jitter": 0.0,  # strength; timm leaves it out where there is auto_augment
        "erasing": 0.0,  # probability of a random rectangle of noise
        "repeats": 1,  # crops of an image in one batch; an epoch then sees 1/repeats of the images
    },
    "mix": {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0},  # alpha, alpha, share of every other class
    "loss": {
        "type": "cross-entropy",  # or "bce", each class for itself
        "threshold": 0.0,  # bce: a class of a mixed image counts as there above this share; 0: the share is the target
    },
    "global_batch_size": 1024,
    "optimizer": {
        "type": "adamw",
        "base_lr": 5e-4,  # per `base_batch` images
        "base_batch": 256,
        "betas": (0.9, 0.999),
        "momentum": 0.9,  # sgd
        "nesterov": False,  # sgd
        "weight_decay": 0.05,
        "layer_decay": 1.0,  # of layer i of L: layer_decay^(L + 1 - i)
    },
    "schedule": PRETRAINING["schedule"] | {"epochs": 100, "warmup_epochs": 5, "warmup_lr": 0.0, "min_lr": 1e-6},
    "labels": {"subset": None, "seed": 0},  # "10%" of each class, or "5" images of each
    "evaluate": {"every_epochs": 1, "batch_size": 64},
    "log": {"every_steps": 10, "tensorboard": False},
    "export": ["timm"],  # [] leaves no encoder and no classifier behind
    "laptop": {  # a small network, minutes on a CPU; the same for all, as the encoder decides the size
        "data.img_size": None,
        "data.test_size": None,
        "global_batch_size": 64,
        "schedule.epochs": 6,
        "schedule.warmup_epochs": 1,
        "augment.repeats": 1,
    },
    **{key: PRETRAINING[key] for key in SHARED},
}

_SHARE = (lambda v: number(0, 1)[0](v) and v < 1, "a number of at least 0 and below 1")
RULES = {
    "protocol": or_none((lambda v: isinstance(v, str), "the name of a fine-tuning protocol")),
    "variant": or_none((lambda v: isinstance(v, str), "a variant of the protocol")),
    "classifier.pooling": (lambda v: isinstance(v, str), "'default' or a pooling of timm, e.g. 'avg'"),
    "classifier.norm": one_of("default", "after"),
    "classifier.head_init_std": number(),
    "classifier.drop_path_rate": number(0, 1),
    "classifier.allow_partial": FLAG,
    "data.img_size": or_none(whole(1)),
    "data.test_size": or_none(whole(1)),
    "data.in_chans": or_none(whole(1)),
    "data.mean": or_none(PRETRAINING_RULES["data.mean"]),
    "data.std": or_none(PRETRAINING_RULES["data.std"]),
    "data.crop_pct": number(0, 1, above=True),
    **{f"data.{key}": PRETRAINING_RULES[f"data.{key}"] for key in ("scale", "ratio", "hflip", "interpolation")},
    **{f"data.{key}": PRETRAINING_RULES[f"data.{key}"] for key in ("transforms", "bits", "exif", "value_range")},
    "augment.auto_augment": (
        lambda v: isinstance(v, str),
        "'', 'trivial' or words of timm, e.g. 'rand-m9-mstd0.5-inc1'",
    ),
    "augment.color_jitter": number(),
    "augment.erasing": number(0, 1),
    "augment.repeats": whole(1),
    "mix.mixup": number(),
    "mix.cutmix": number(),
    "mix.smoothing": _SHARE,
    "loss.type": one_of("cross-entropy", "bce"),
    "loss.threshold": _SHARE,
    "global_batch_size": whole(1),
    **{f"optimizer.{key}": PRETRAINING_RULES[f"optimizer.{key}"] for key in ("type", "base_lr", "betas")},
    "optimizer.base_batch": whole(1),
    "optimizer.momentum": number(0, 1),
    "optimizer.nesterov": FLAG,
    "optimizer.weight_decay": number(),
    "optimizer.layer_decay": number(0, 1, above=True),
    **{key: rule for key, rule in PRETRAINING_RULES.items() if key.startswith("schedule.")},
    "schedule.warmup_lr": number(),
    "labels.subset": or_none((lambda v: isinstance(v, str | int | float), "a share such as '10%', or images a class")),
    "labels.seed": whole(0),
    "evaluate.every_epochs": whole(1),
    "evaluate.batch_size": whole(1),
    "log.every_steps": whole(1),
    "log.tensorboard": FLAG,
    "export": list_of(str, "targets: ['timm'] or []"),
    "laptop": PRETRAINING_RULES["laptop"],
    **{key: rule for key, rule in PRETRAINING_RULES.items() if key.partition(".")[0] in SHARED},
}

SETTING_OF = {  # a protocol's constant -> the setting of the same meaning
    **{key: key for key in ("global_batch_size", "seed", "clip_grad")},
    "ema_decay": "ema",
    **{key: f"schedule.{key}" for key in ("epochs", "warmup_epochs", "warmup_lr", "min_lr")},
    "optimizer": "optimizer.type",
    **{
        key: f"optimizer.{key}"
        for key in ("base_lr", "base_batch", "betas", "momentum", "nesterov", "weight_decay", "layer_decay")
    },
    **{key: f"classifier.{key}" for key in ("drop_path_rate", "pooling", "norm", "head_init_std")},
    **{key: f"augment.{key}" for key in ("auto_augment", "color_jitter", "erasing", "repeats")},
    **{key: f"mix.{key}" for key in ("mixup", "cutmix", "smoothing")},
    "loss": "loss.type",
    "target_threshold": "loss.threshold",
    "train_size": "data.img_size",
    **{key: f"data.{key}" for key in ("test_size", "crop_pct", "interpolation")},
    "subset": "labels.subset",
    "subset_seed": "labels.seed",
}


def read_recipe(path) -> dict:
    """The recipe's own settings; the name of a protocol is a recipe that says nothing else."""
    from a2mim.evaluation.protocols import protocol_names

    if str(path) in protocol_names("finetune"):
        return {"protocol": str(path)}
    return read(path)


def lay_protocol(given: dict, options: dict) -> dict:
    """The constants of the recipe's protocol as settings, dotted; they lie under what the recipe says."""
    from a2mim.evaluation.protocols import read_protocol

    name, variant = (options.get(key, given.get(key)) for key in ("protocol", "variant"))
    if name is None:
        return {}
    protocol = read_protocol(name, {"variant": variant} if variant else None)
    if protocol.kind != "finetune":
        raise ValueError(f"protocol {name!r} judges frozen features; fine-tuning takes one of {_names()}")
    constants = {key: value for key, value in protocol.constants.items() if key != "variant"}
    return {SETTING_OF[key]: _to_setting(key, value) for key, value in constants.items()}


def protocol_in_force(settings: dict):
    """The protocol with the constants that these settings make of it, hence with its deviations and their hash; None
    without a protocol.
    """
    from a2mim.evaluation.protocols import read_protocol

    if settings["protocol"] is None:
        return None
    chosen = {"variant": settings["variant"]} if settings["variant"] else {}
    published = read_protocol(settings["protocol"], chosen).constants
    used = {key: _to_constant(key, get(settings, SETTING_OF[key])) for key in published if key != "variant"}
    changed = {key: value for key, value in used.items() if value != published[key] and key != "seed"}
    return read_protocol(settings["protocol"], chosen | changed)


def _to_setting(key: str, value):
    if key == "ema_decay":
        return 1 - value if value else None
    return value or None if key == "clip_grad" else value


def _to_constant(key: str, value):
    if key == "ema_decay":
        return 1 - value if value else 0.0
    if key == "clip_grad":
        return value or 0.0
    if key == "subset":
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _names() -> str:
    from a2mim.evaluation.protocols import protocol_names

    return ", ".join(protocol_names("finetune"))


def check_finetuning(config: dict) -> None:
    """What belongs together in a fine-tuning recipe."""
    chans = config["data"]["in_chans"]
    for key in ("mean", "std"):
        values = config["data"][key]
        if values is not None and chans is not None and len(values) != chans:
            raise ValueError(f"data.{key} has {len(values)} values, data.in_chans={chans}; give one a channel")
    if config["loss"]["threshold"] and config["loss"]["type"] != "bce":
        raise ValueError(f"loss.threshold={config['loss']['threshold']} is for loss.type='bce' only; set it to 0")
    if set(config["export"]) - {"timm"}:
        raise ValueError(
            f"export={config['export']!r}: fine-tuning hands over ['timm'] or []; a2mim export does the rest"
        )


FINETUNE = Schema("finetune", DEFAULTS, RULES, check_finetuning, read=read_recipe, under=lay_protocol)

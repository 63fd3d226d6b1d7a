"""Fine-tuning protocols as settings, and back: where each constant of a protocol stands in a recipe.

The constants themselves stand in one place, `a2mim.protocols`.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from a2mim.engine.finetune_settings import FinetuneSettings
from a2mim.protocols import Protocol, protocol_names, read_protocol

SETTING_OF = {  # a protocol's constant -> the setting of the same meaning
    **{key: key for key in ("global_batch_size", "seed", "clip_grad")},
    "ema_decay": "ema",
    **{key: f"schedule.{key}" for key in ("epochs", "least_steps", "warmup_epochs", "warmup_lr", "min_lr")},
    "optimizer": "optimizer.type",
    **{
        key: f"optimizer.{key}"
        for key in (
            "base_lr",
            "base_batch",
            "betas",
            "momentum",
            "nesterov",
            "weight_decay",
            "layer_decay",
            "head_lr_scale",
            "rates",
        )
    },
    **{key: f"classifier.{key}" for key in ("drop_path_rate", "pooling", "norm", "head_init_std", "start")},
    **{key: f"augment.{key}" for key in ("auto_augment", "color_jitter", "erasing", "repeats")},
    **{key: f"mix.{key}" for key in ("mixup", "cutmix", "smoothing")},
    "loss": "loss.type",
    "target_threshold": "loss.threshold",
    "train_size": "data.img_size",
    **{key: f"data.{key}" for key in ("test_size", "crop_pct", "scale", "interpolation")},
    "subset": "labels.subset",
    "subset_seed": "labels.seed",
}


def protocol_settings(name: str, variant: str | None) -> dict:
    """The constants of a fine-tuning protocol as dotted settings.

    Raises:
        ValueError: there is no such protocol or variant, or the protocol judges frozen features.
    """
    protocol = read_protocol(name, {"variant": variant} if variant else None)
    if protocol.kind != "finetune":
        known = ", ".join(protocol_names("finetune"))
        raise ValueError(f"protocol {name!r} judges frozen features; fine-tuning takes one of {known}")
    constants = {key: value for key, value in protocol.constants.items() if key != "variant"}
    return {SETTING_OF[key]: _to_setting(key, value) for key, value in constants.items()}


def protocol_in_force(settings: FinetuneSettings) -> Protocol | None:
    """The protocol with the constants that these settings make of it, which knows its deviations and its hash; None for
    a recipe without a protocol.
    """
    if settings.protocol is None:
        return None
    chosen = {"variant": settings.variant} if settings.variant else {}
    published = read_protocol(settings.protocol, chosen).constants
    used = {key: _to_constant(key, attrgetter(SETTING_OF[key])(settings)) for key in published if key != "variant"}
    changed = {key: value for key, value in used.items() if value != published[key] and key != "seed"}
    return read_protocol(settings.protocol, chosen | changed)


def _to_setting(key: str, value: Any) -> Any:
    if key == "ema_decay":
        return 1 - value if value else None
    return value or None if key in ("clip_grad", "least_steps") else value


def _to_constant(key: str, value: Any) -> Any:
    if key == "ema_decay":
        return 1 - value if value else 0.0
    if key == "clip_grad":
        return value or 0.0
    if key == "least_steps":
        return value or 0
    if key == "subset":
        return str(value)
    return list(value) if isinstance(value, tuple) else value

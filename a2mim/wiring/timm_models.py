"""The one place where timm builds a model: by name, image size, channels and arguments.

Invariant: the model has what the caller requested. Stochastic depth and dropout that were not requested are 0, even if
timm's default is not. An image size or a number of channels that is given twice must be the same both times.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from a2mim.files import read_object
from a2mim.text import close_names, first_line
from a2mim.wiring.model_type import TimmModel
from a2mim.wiring.plain_arguments import fault_of_argument, shorten

OFF = ("drop_path_rate", "drop_rate", "proj_drop_rate")  # rates whose default in timm is not always 0
UNBUILDABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)
REFUSALS = (*UNBUILDABLE, ValueError)  # errors with which constructors refuse a size
_NAME = re.compile(r"\w+(\.[\w.\-]+)?")  # architecture, or architecture.tag


@dataclass(frozen=True)
class BuiltModel:
    """A network and the arguments that build it.

    Attributes:
        name: timm's name of the architecture, with the requested tag; or a dotted path.
        model: with random or with the requested weights.
        img_size: (H, W) in pixels of the model's images.
        model_args: arguments that build the same model again, together with the name and the number of classes.
        sized: the constructor accepted the image size. False: the network runs at any size, or refuses in its forward.
    """

    name: str
    model: TimmModel
    img_size: tuple[int, int]
    model_args: dict[str, Any] = field(default_factory=dict)
    sized: bool = True


def is_timm(name: str) -> bool:
    """True if timm builds this: a registered name, or a folder or hub address that timm reads."""
    return name.partition(":")[0] in ("local-dir", "hf-hub", "hf_hub") or is_registered(name)


def is_registered(name: object) -> bool:
    """True for a name in timm's table of models, with or without a tag of weights; False for an address."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and timm.is_model(name)


def build_timm(
    name: str,
    img_size: int | tuple[int, int] | list[int] | None = None,
    in_chans: int | None = None,
    num_classes: int = 0,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    model_args: Mapping[str, Any] | None = None,
    cfg_overlay: Mapping[str, Any] | None = None,
) -> BuiltModel:
    """Builds a timm model.

    Args:
        name: as timm.create_model takes it. The config.json at an address (local-dir:…, hf-hub:…) may contain only
            timm's models and plain arguments.
        img_size: pixels, one number or (height, width); None is the size in model_args, else the model's own size.
        in_chans: channels of the images; None is the number in model_args, else 3.
        num_classes: 0 is an encoder without a classifier.
        drop_path_rate: stochastic depth; 0 is none, whatever timm's default.
        pretrained: timm's published weights, which it downloads.
        model_args: further arguments of the constructor.
        cfg_overlay: timm's `pretrained_cfg_overlay`.

    Raises:
        ValueError: an argument is unknown, or two contradict each other.
    """
    arguments = dict(model_args or {})
    if ":" in name:
        name, arguments, address = *_read_address(name, arguments), name
    else:
        address = name
    size = _agreed("img_size", None if img_size is None else list(_pair(img_size)), arguments)
    channels = _agreed("in_chans", in_chans, arguments)
    if channels not in (None, 3) or "in_chans" in arguments:
        arguments["in_chans"] = channels
    rate = _agreed("drop_path_rate", drop_path_rate or None, arguments)
    off = {key: 0.0 for key in OFF if key not in arguments}
    if rate:
        off["drop_path_rate"] = rate
    fixed: dict[str, Any] = {"pretrained": pretrained, "num_classes": num_classes}
    if cfg_overlay is not None:
        fixed["pretrained_cfg_overlay"] = dict(cfg_overlay)
    rest = {key: value for key, value in arguments.items() if key != "img_size"}
    stated = {key: rest.pop(key) for key in ("drop_path_rate",) if key in rest}  # is in `off`
    state = torch.get_rng_state()
    if size is not None:
        try:
            model = _create(address, fixed | rest | {"img_size": list(_pair(size))}, off)
            return BuiltModel(name, model, _pair(size), rest | stated | {"img_size": list(_pair(size))})
        except REFUSALS as error:  # the constructor has no such argument, or refuses the size
            if "img_size" in arguments:
                raise _unbuildable(name, arguments, error) from error
            torch.set_rng_state(state)  # so that the weights do not depend on the failed attempt
    try:
        model = _create(address, fixed | rest, off)
    except UNBUILDABLE as error:
        if pretrained and isinstance(error, RuntimeError):  # an error about weights, which the caller explains better
            raise
        raise _unbuildable(name, rest, error) from error
    own = tuple(model.pretrained_cfg["input_size"][1:])
    return BuiltModel(name, model, own if size is None else _pair(size), rest | stated, sized=size is None)


def fetched(name: str, build: Callable[[], BuiltModel]) -> BuiltModel:
    """What `build` makes with timm's published weights.

    Raises:
        ValueError: timm has none for this name.
        OSError: they could not be downloaded.
    """
    try:
        return build()
    except ValueError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"timm has no weights for {name} ({first_line(error)}): give a file, or the name alone."
        ) from None
    except Exception as error:  # downloads fail with any error
        raise OSError(
            f"timm's weights for {name} are not in its cache and could not be fetched ({first_line(error)});"
            " fetch them where there is a network, or give a file as NAME:FILE."
        ) from None


def on_meta(name: str, num_classes: int = 0, **model_args: Any) -> nn.Module:
    """The model on the meta device, where it takes no memory: for its keys and shapes."""
    with torch.device("meta"):
        return build_timm(name, num_classes=num_classes, model_args=model_args).model


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the state dictionary."""
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def takes(name: str, **argument: Any) -> bool:
    """True if the constructor has this argument. Its value is checked when the model is built."""
    try:
        with torch.device("meta"):
            timm.create_model(name, num_classes=0, **argument)
    except TypeError:
        return False
    except (AssertionError, RuntimeError, ValueError):
        return True
    return True


def as_timm_reads(folder: str | Path) -> nn.Module:
    """The model that timm's own loading makes of our folder; proves that timm can read it."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


def maps_on_meta(name: str, out_indices: list[int], model_args: Mapping[str, Any]) -> nn.Module:
    """timm's features_only=True by `forward_intermediates`, without weights: what ends at the last of these maps."""
    kind: dict[str, Any] = {"features_only": True, "feature_cls": "getter", "out_indices": tuple(out_indices)}
    with torch.device("meta"):
        return timm.create_model(name, **kind, **model_args)


def unknown_model(name: str, what: str = "not a model that timm knows") -> ValueError:
    """The error for a name, with the nearest names that timm knows."""
    near = close_names(name.split(".")[0], timm.list_models(), 4, cutoff=0.3)
    return ValueError(f"{name!r} is {what}" + (f"; the nearest names: {', '.join(near)}." if near else "."))


def _create(name: str, arguments: dict[str, Any], off: dict[str, Any]) -> TimmModel:
    """timm.create_model, without the rates in `off` that this constructor lacks.

    Raises:
        ValueError: the model lacks a rate that is above 0.
    """
    off, state = dict(off), torch.get_rng_state()
    while True:
        try:
            return timm.create_model(name, **arguments, **off)
        except TypeError as error:
            lacking = next((key for key in off if f"'{key}'" in str(error)), None)
            if lacking is None:
                raise
            if off.pop(lacking):
                raise ValueError(f"{name} has no stochastic depth; leave drop_path_rate at 0.") from error
            torch.set_rng_state(state)


def _agreed(key: str, stated: Any, arguments: dict[str, Any]) -> Any:
    """The value of an argument that may be given directly, in `arguments`, or in both with the same value."""
    given = arguments.get(key)
    if stated is None or given is None:
        return given if stated is None else stated
    same = _pair(stated) == _pair(given) if key == "img_size" else stated == given
    if not same:
        raise ValueError(f"{key}={stated} and {key}={given} in model_args contradict each other: state it once.")
    return stated


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _unbuildable(name: str, arguments: dict[str, Any], error: Exception) -> ValueError:
    told = ", ".join(f"{key}={shorten(value)}" for key, value in arguments.items()) or "no arguments"
    return ValueError(f"{name} cannot be built with {told} ({first_line(error)}); change model_args.")


def _read_address(address: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(architecture, arguments) that timm builds from a folder or a hub. What the user typed has priority.

    Raises:
        ValueError: the config.json names a model that is not timm's, or an argument that a file may not set.
    """
    source, _, path = address.partition(":")
    if source == "local-dir":
        config = read_object(Path(path) / "config.json")
        name, stated = config.get("architecture"), config.get("model_args")
    else:
        _, name, stated = timm.models.load_model_config_from_hf(path)
    if not isinstance(name, str) or not is_registered(name):
        raise ValueError(f"{address} names the architecture {shorten(name)}, which is not a model that timm knows.")
    if not isinstance(stated, dict | None):
        raise ValueError(f"the config.json of {address} has model_args={shorten(stated)}, which is no dictionary.")
    stated = {key: value for key, value in (stated or {}).items() if key != "num_classes"}
    for key, value in stated.items():
        if fault := fault_of_argument(key, value):
            raise ValueError(f"the config.json of {address} sets {fault}.")
    return name, stated | arguments

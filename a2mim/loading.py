"""An encoder from wherever it lies: a run folder, an exported timm folder, a checkpoint, or timm's own names.

Invariant: every tensor comes from the file or the call fails; nothing is ever left random without a word.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from a2mim.checkpoints import first_line, read_checkpoint, read_newest
from a2mim.encoder import unknown_model
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD

PREFIX = "encoder.model."  # of the timm model's keys in a checkpoint
NAMED = 3  # keys that an error spells out


@dataclass
class Source:
    """Where an encoder comes from, read but not built: plain values, and its tensors unless it is only a name."""

    name: str  # timm's
    model_args: dict = field(default_factory=dict)  # beyond the name and num_classes=0
    preprocessing: dict | None = None  # mean, std, img_size [H, W], interpolation
    tensors: dict | None = None
    frozen: list = field(default_factory=list)  # parameters that pre-training never reached
    path: Path | None = None
    calibrated: bool = False  # BatchNorm's running statistics are those of whole images, not of masked ones or of none


def load_encoder(source: str | Path, **overrides) -> tuple[nn.Module, dict]:
    """(timm model without classifier, in evaluation mode; {"mean", "std", "img_size": [H, W], "interpolation"}).

    Args:
        source: a run folder (its encoder/, else its newest checkpoint), an exported folder (config.json and
            model.safetensors), a checkpoint *.pth, or a timm name, which gives random weights.
        overrides: what timm.create_model takes, e.g. img_size or in_chans, to which the weights are then adapted; for a
            timm name also pretrained=True, which downloads.

    Raises:
        FileNotFoundError: the path does not exist, or holds no encoder.
        ValueError: an unknown name (with the nearest ones), or weights that are not exactly the model's.
    """
    found = read_source(source)
    model, preprocessing = build(found, **overrides)
    return model.eval(), preprocessing


def read_source(source: str | Path) -> Source:
    """Recognises the kinds of source by what lies there; see `load_encoder`."""
    path = Path(str(source).removeprefix("local-dir:"))
    if path.is_file():
        return _of_checkpoint(path, _load(path, read_checkpoint))
    if path.is_dir():
        return _read_folder(path)
    name = str(source)
    if timm.is_model(name):
        return Source(name)
    if "/" in name or "\\" in name or path.suffix in (".pth", ".safetensors"):
        raise FileNotFoundError(
            f"{name} does not exist: give a run folder, an exported folder, a checkpoint or a timm name."
        )
    raise unknown_model(name, "neither a path nor a model that timm knows")


def _read_folder(folder: Path) -> Source:
    for candidate in (folder, folder / "encoder"):
        if (candidate / "config.json").is_file():
            return _read_timm_folder(candidate)
    newest = read_newest(folder / "checkpoints")
    if newest is None:
        raise FileNotFoundError(
            f"{folder} holds neither config.json with model.safetensors, nor encoder/, nor checkpoints/."
        )
    return _of_checkpoint(*newest)


def _read_timm_folder(folder: Path) -> Source:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{folder} has a config.json but no model.safetensors: export the encoder again.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    cfg, tensors = config.get("pretrained_cfg", {}), _load(weights, load_file)
    if cfg.get("num_classes", 0):  # another tool's folder with its classifier
        classifiers = cfg.get("classifier") or ()
        for name in [classifiers] if isinstance(classifiers, str) else classifiers:
            tensors = {key: value for key, value in tensors.items() if not key.startswith(f"{name}.")}
    model_args = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
    channels, *size = cfg.get("input_size", (3, 224, 224))
    if channels != 3:
        model_args.setdefault("in_chans", channels)
    receipt = folder / "receipt.json"
    told = json.loads(receipt.read_text(encoding="utf-8")) if receipt.is_file() else {}
    calibrated = told.get("batchnorm", {}).get("clean", True)
    preprocessing = _preprocessing(cfg, size)
    return Source(
        config["architecture"], model_args, preprocessing, tensors, told.get("frozen", []), folder, calibrated
    )


def _of_checkpoint(path: Path, checkpoint: dict) -> Source:
    """What pre-training left: its BatchNorm has seen masked images only, so it is not `calibrated`."""
    try:
        state, meta = checkpoint["state_dict"], checkpoint["meta"]
        arguments, pixels = meta["encoder"], meta["pixels"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of a2mim: it has no {error}.") from None
    tensors = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    model_args = dict(arguments["model_args"])
    if arguments["in_chans"] != 3:
        model_args.setdefault("in_chans", arguments["in_chans"])
    preprocessing = _preprocessing(pixels, arguments["img_size"])
    return Source(arguments["name"], model_args, preprocessing, tensors, list(arguments["frozen"]), path)


def _load(path: Path, read):
    try:
        return read(path)
    except Exception as error:  # each reader has its own ways to say that a file is broken
        reason = first_line(error) if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}): it is incomplete or not a file of a2mim.") from None


def _preprocessing(cfg: dict, size) -> dict:
    return {
        "mean": list(cfg.get("mean", IMAGENET_MEAN)),
        "std": list(cfg.get("std", IMAGENET_STD)),
        "img_size": list(size),
        "interpolation": cfg.get("interpolation", "bilinear"),
    }


def build(found: Source, **overrides) -> tuple[nn.Module, dict]:
    """(the model with the source's tensors, all of them; its preprocessing)."""
    if found.tensors is None:
        model, size = create(found.name, **overrides)
        cfg = model.pretrained_cfg
        channels = overrides.get("in_chans") or cfg["input_size"][0]
        return model, _for_channels(_preprocessing(cfg, size or cfg["input_size"][1:]), channels)
    overrides.pop("pretrained", None)  # the file's weights are the point
    source_size, source_channels = found.preprocessing["img_size"], found.model_args.get("in_chans", 3)
    overlay = {
        "state_dict": dict(found.tensors),  # timm adapts these to another img_size or in_chans
        "source": None,  # where the name's own weights would come from
        "file": None,
        "input_size": (source_channels, *source_size),
        "num_classes": 0,
        **{key: found.preprocessing[key] for key in ("mean", "std", "interpolation")},
    }
    arguments = found.model_args | overrides
    try:
        model, size = create(found.name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except RuntimeError as error:
        raise ValueError(_difference(found, create(found.name, **arguments)[0]) or str(error)) from None
    cfg = model.pretrained_cfg
    cfg.pop("state_dict", None)  # else the weights would live twice
    problem = _difference(found, model, values=True)
    if problem:
        raise ValueError(problem)
    channels = arguments.get("in_chans", 3)
    preprocessing = _for_channels(found.preprocessing | {"img_size": list(size or source_size)}, channels)
    cfg["input_size"] = (channels, *preprocessing["img_size"])
    return model, preprocessing


def create(name: str, img_size=None, pretrained: bool = False, **arguments) -> tuple[nn.Module, list | None]:
    """(timm model with num_classes=0, [H, W] or None): img_size goes to the model where it takes one."""
    if img_size is None:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments), None
    size = [img_size, img_size] if isinstance(img_size, int) else list(img_size)
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=size, **arguments), size
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments), size


def _difference(found: Source, model: nn.Module, values: bool = False) -> str:
    """One sentence on the keys that do not agree, or nothing; `values` also compares tensors of equal shape."""
    own, given = model.state_dict(), found.tensors
    missing = [key for key in own if key not in given]
    unexpected = [key for key in given if key not in own]
    same_shape = [key for key in own if key in given and own[key].shape == given[key].shape]
    reshaped = [] if values else [key for key in own if key in given and key not in same_shape]
    unloaded = [key for key in same_shape if values and not torch.equal(own[key].cpu(), given[key].to(own[key].dtype))]
    parts = [
        f"{len(keys)} {word} ({', '.join(keys[:NAMED])}{', …' if len(keys) > NAMED else ''})"
        for word, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
            ("not taken over", unloaded),
        )
        if keys
    ]
    if not parts:
        return ""
    return f"the weights in {found.path} are not those of {found.name}, of {len(own)} tensors: {'; '.join(parts)}."


def _for_channels(preprocessing: dict, channels: int) -> dict:
    """Mean and deviation for another number of channels: their average, repeated."""
    averages = {
        key: [sum(preprocessing[key]) / len(preprocessing[key])] * channels
        for key in ("mean", "std")
        if len(preprocessing[key]) != channels
    }
    return preprocessing | averages

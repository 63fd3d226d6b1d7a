"""Where an encoder comes from, read but not built: a run folder, an exported timm folder, a checkpoint, timm's own
names, or the weights of another toolkit, whose keys become timm's.

Invariant: what lies there is recognised or refused; nothing is guessed.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from a2mim.checkpoints import NotOurs, first_line, read_checkpoint, read_newest
from a2mim.pixels import Preprocessing
from a2mim.weights.converters import architecture_of, arguments_of, on_meta, pixels_of, read_weights, recognise
from a2mim.wiring.networks import build_model, find_class, unknown_model

PREFIX = "encoder.model."  # of the timm model's keys in a checkpoint
PUBLISHED = "pretrained"  # NAME:pretrained
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder of transformers or of a model hub


@dataclass
class Source:
    """Where an encoder comes from, read but not built: plain values, and its tensors unless it is only a name."""

    name: str  # timm's
    model_args: dict = field(default_factory=dict)  # beyond the name and num_classes=0
    preprocessing: Preprocessing | None = None
    tensors: dict | None = None
    frozen: list = field(default_factory=list)  # parameters that pre-training never reached
    path: Path | None = None
    calibrated: bool = False  # BatchNorm's running statistics are those of whole images, not of masked ones or of none
    recognised: str = "a timm name, with random weights"  # for the report
    # what the file holds beside the encoder: first part of the key -> count
    left_out: dict = field(default_factory=dict)


def read_source(source: str | Path, name: str | None = None) -> Source:
    """Recognises the kinds of source by what lies there; see `load_encoder`.

    Args:
        name: the architecture of a file that names none; NAME:FILE in `source` says the same.
    """
    path = Path(str(source).removeprefix("local-dir:"))
    if path.is_file():
        return _of_file(path, name)
    if path.is_dir():
        return _read_folder(path, name)
    text = str(source)
    before, colon, weights = text.partition(":")
    if colon and before != "local-dir" and (weights == PUBLISHED or Path(weights).exists()):
        if not timm.is_model(before):
            raise unknown_model(before, f"not a model that timm knows, as it must be in {text}")
        if weights == PUBLISHED:
            return _published(before)
        return _of_file(Path(weights), before) if Path(weights).is_file() else _read_folder(Path(weights), before)
    if not colon and timm.is_model(text):
        return Source(text)
    if "/" in text or "\\" in text or path.suffix in (".pth", ".pt", ".bin", ".safetensors"):
        missing = weights if colon and timm.is_model(before) else text
        raise FileNotFoundError(
            f"{missing} does not exist: give a run folder, an exported folder, a checkpoint, a timm name, or NAME:FILE."
        )
    if "." in text and not colon:
        find_class(text)  # or its sentence
        return Source(text, recognised="a network of your own, with random weights")
    raise unknown_model(text, "neither a path nor a model that timm knows")


def _read_folder(folder: Path, name: str | None) -> Source:
    for candidate in (folder, folder / "encoder"):
        if (candidate / "config.json").is_file():
            config = _json(candidate / "config.json")
            if name is None and "model_type" not in config:
                return _read_timm_folder(candidate, config)
            return _read_hub_folder(candidate, config, name)
    if any((folder / file).is_file() for file in WEIGHT_FILES):
        return _read_hub_folder(folder, {}, name)
    newest = read_newest(folder / "checkpoints")
    if newest is None:
        raise FileNotFoundError(
            f"{folder} holds neither config.json with model.safetensors, nor encoder/, nor checkpoints/."
        )
    return _of_checkpoint(*newest)


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read: it is incomplete or not JSON.")
    return content


def _read_timm_folder(folder: Path, config: dict) -> Source:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{folder} has a config.json but no model.safetensors: export the encoder again.")
    if "architecture" not in config:
        raise ValueError(
            f"{folder}/config.json names neither timm's architecture nor transformers' model_type: write NAME:{folder},"
            " with timm's name of it."
        )
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
    told = _json(receipt) if receipt.is_file() else {}
    return Source(
        config["architecture"],
        model_args,
        preprocessing_of(cfg, size),
        tensors,
        told.get("frozen", []),
        folder,
        calibrated=told.get("batchnorm", {}).get("clean", True),
        recognised="a timm folder",
    )


def _read_hub_folder(folder: Path, config: dict, name: str | None) -> Source:
    """A folder of transformers, or the weights in any folder whose architecture the user names."""
    weights = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} has a config.json but none of {', '.join(WEIGHT_FILES)}.")
    model_args, pixels = {}, None
    if name is None and "model_type" in config:
        name, model_args = architecture_of(config, folder)
    if "model_type" in config:
        pixels = pixels_of(config, folder)
    return _of_foreign(weights, read_weights(weights), name, model_args, pixels)


def _of_file(path: Path, name: str | None) -> Source:
    try:
        found = _of_checkpoint(path, _load(path, read_checkpoint)) if path.suffix != ".safetensors" else None
    except NotOurs:
        found = None
    except ValueError:
        if name is None:
            raise
        found = None  # torch.save's old format has no checksums; what it is shows when it is read
    if found is None:
        return _of_foreign(path, read_weights(path), name)
    if name not in (None, found.name):
        raise ValueError(f"{path} is a checkpoint of {found.name}, not of {name}: leave {name}: out.")
    return found


def _of_checkpoint(path: Path, checkpoint: dict) -> Source:
    """What pre-training left: its BatchNorm has seen masked images only, so it is not `calibrated`. Or fine-tuning."""
    try:
        state, meta = checkpoint["state_dict"], checkpoint["meta"]
        if "classifier" in meta:
            return _of_classifier(path, state, meta)
        arguments, pixels = meta["encoder"], meta["pixels"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of a2mim: it has no {error}.") from None
    tensors = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    model_args = dict(arguments["model_args"])
    if arguments["in_chans"] != 3:
        model_args.setdefault("in_chans", arguments["in_chans"])
    return Source(
        arguments["name"],
        model_args,
        preprocessing_of(pixels, arguments["img_size"]),
        tensors,
        list(arguments["frozen"]),
        path,
        recognised="a checkpoint of a2mim",
    )


def _of_classifier(path: Path, state: dict, meta: dict) -> Source:
    """What fine-tuning left, without its classifier."""
    arguments = meta["classifier"]
    name, model_args = arguments["name"], dict(arguments["model_args"])
    own = on_meta(name, **model_args).state_dict()
    tensors = {key.removeprefix("model."): value for key, value in state.items() if key.removeprefix("model.") in own}
    pixels = preprocessing_of(meta["pixels"], arguments["img_size"])
    told = "a checkpoint of a2mim's fine-tuning"
    return Source(name, model_args, pixels, tensors, list(arguments["frozen"]), path, calibrated=True, recognised=told)


def _of_foreign(path: Path, content, name: str | None, model_args: dict | None = None, pixels=None) -> Source:
    """Weights of another toolkit for timm's model `name`; what an encoder does without is left out by name."""
    own = _unfilled(name, model_args or {}).state_dict() if name else {}
    found = recognise(content, own)
    if found is None:
        what = f"those of {name} or of " if name else ""
        raise ValueError(
            f"{path} is not a checkpoint of a2mim, and its keys are not recognised as {what}a form that is"
            " (docs/starting_from.md lists them)."
        )
    if name is None:
        near = _likely(found)
        raise ValueError(
            f"{path} is not a checkpoint of a2mim: it holds the weights of {found.form.title}, which do not say which"
            f" one; write NAME:{path}, with timm's name of it, e.g. {near}:{path}."
        )
    arguments = arguments_of(name, found.tensors, model_args or {}) if is_timms(name) else {}
    model = _unfilled(name, arguments)
    for key in model.state_dict():  # a count that nothing is computed from, which older files do not have
        if key.endswith("num_batches_tracked") and key.replace("num_batches_tracked", "running_mean") in found.tensors:
            found.tensors.setdefault(key, torch.zeros((), dtype=torch.int64))
    cfg = model.pretrained_cfg
    size = arguments.get("img_size", cfg["input_size"][1:])
    size = [size, size] if isinstance(size, int) else size
    told = f"{found.form.title}" + (f", in {found.where}" if found.where else "")
    preprocessing = preprocessing_of(cfg | (pixels or found.pixels or {}), size)
    preprocessing = preprocessing.for_channels(arguments.get("in_chans", 3))
    return Source(name, arguments, preprocessing, found.tensors, [], path, not found.masked, told, dict(found.left_out))


def _unfilled(name: str, arguments: dict) -> nn.Module:
    """The model whose keys and shapes are asked for; timm's without memory for its weights."""
    return on_meta(name, **arguments) if is_timms(name) else build_model(name, model_args=arguments)[1]


def _likely(found) -> str:
    """The first of the form's usual architectures that these tensors fit, else the first."""
    for name in found.form.examples:
        own = on_meta(name).state_dict()
        fits = [key for key in own if key in found.tensors and own[key].shape == found.tensors[key].shape]
        if 10 * len(fits) >= 9 * len(own) and set(found.tensors) <= set(own):
            return name
    return (found.form.examples or ("resnet50",))[0]


def _published(name: str) -> Source:
    """timm's own weights, downloaded by timm into its cache, then treated as any other file's."""
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except RuntimeError as error:
        raise ValueError(
            f"timm has no weights for {name} ({first_line(error)}): give a file, or the name alone."
        ) from None
    except Exception as error:  # every way in which a download fails
        raise OSError(
            f"timm's weights for {name} are not in its cache and could not be fetched ({first_line(error)});"
            " fetch them where there is a network, or give a file as NAME:FILE."
        ) from None
    cfg = model.pretrained_cfg
    return Source(
        name,
        {},
        preprocessing_of(cfg, cfg["input_size"][1:]),
        model.state_dict(),
        calibrated=True,
        recognised=f"timm's published weights ({cfg.get('tag') or 'default'})",
    )


def _load(path: Path, read):
    try:
        return read(path)
    except NotOurs:
        raise
    except Exception as error:  # each reader has its own ways to say that a file is broken
        reason = first_line(error) if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}): it is incomplete or not a file of a2mim.") from None


def preprocessing_of(cfg: dict, size) -> Preprocessing:
    """What timm's pretrained_cfg, or the part of it that a file states, says of pixels; without its crop."""
    return Preprocessing.of({key: cfg[key] for key in ("mean", "std", "interpolation") if key in cfg}, size)


def is_timms(name: str) -> bool:
    return ":" in name or timm.is_model(name)

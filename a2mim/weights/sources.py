"""Reads an encoder from its source without building it: a run folder, an exported timm folder, a checkpoint, timm's own
names, or the weights of another toolkit, whose keys are renamed to timm's.

Invariant: a source is recognised or refused; nothing is guessed.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from a2mim.checkpoints import NotOurs, first_line, read_checkpoint, read_newest
from a2mim.files import read_object
from a2mim.pixels import IMAGENET_MEAN, Preprocessing
from a2mim.weights.converters import architecture_of, arguments_of, pixels_of, place_norm, read_weights, recognise
from a2mim.weights.converters.recognise import Recognised
from a2mim.weights.records import Source
from a2mim.weights.trust import (
    check_arguments,
    check_channels,
    check_hashes,
    check_names,
    check_pixels,
    check_tensors,
    settle_name,
)
from a2mim.wiring.model_type import TimmModel
from a2mim.wiring.networks import build_model, find_class
from a2mim.wiring.timm_models import build_timm, fetched, is_registered, on_meta, unknown_model

PREFIX = "encoder.model."  # of the timm model's keys in a checkpoint
PUBLISHED = "pretrained"  # NAME:pretrained
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder of transformers or a model hub
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def read_source(source: str | Path, name: str | None = None, model_args: Mapping[str, Any] | None = None) -> Source:
    """Recognises the kind of a source by its content; see `load_encoder`.

    Args:
        source: a path, NAME:PATH, NAME:pretrained or a name. A name that is typed here may be a dotted path, which is
            imported; names inside files may not (`a2mim.weights.trust`).
        name: the architecture of a file that names none, from the user or the recipe; NAME:PATH in `source` means the
            same.
        model_args: the recipe's arguments for `name`, for a file that does not contain them.
    """
    text = str(source)
    if not text or (text.endswith(":") and not Path(text).exists()):
        raise ValueError(
            f"{text!r} names no encoder: give a run folder, an exported folder, a checkpoint, a timm name, or"
            " NAME:FILE."
        )
    path = Path(text.removeprefix("local-dir:"))
    if path.exists():
        return _read_path(path, name, model_args)
    before, colon, after = text.partition(":")
    if text.startswith(("hf-hub:", "hf_hub:")):
        return _published(text)
    if colon and before != "local-dir" and (after == PUBLISHED or Path(after).exists()):
        if after == PUBLISHED and is_registered(before):
            return _published(before)
        if not is_registered(before):
            if "." not in before or after == PUBLISHED:
                raise unknown_model(before, f"not a model that timm knows, as it must be in {text}")
            find_class(before)  # raises if it cannot be imported
        return _read_path(Path(after), before, model_args)
    if not colon and is_registered(text):
        return Source(name=text)
    if "/" in text or "\\" in text or path.suffix in SUFFIXES:
        named = colon and (is_registered(before) or "." in before)
        missing = after if named else text
        raise FileNotFoundError(
            f"{missing} does not exist: give a run folder, an exported folder, a checkpoint, a timm name, or NAME:FILE."
        )
    if "." in text and not colon:
        find_class(text)
        return Source(name=text, recognised="a network of your own, with random weights")
    raise unknown_model(text, "neither a path nor a model that timm knows")


def _read_path(path: Path, name: str | None, model_args: Mapping[str, Any] | None) -> Source:
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"{path} is no regular file and no folder: an encoder is read from nothing else.")
    read = _read_folder if path.is_dir() else _of_file
    weights = read(path, name, dict(model_args or {}))
    return replace(weights, given=path)


def _read_folder(folder: Path, name: str | None, model_args: dict[str, Any]) -> Source:
    own = name is not None and not is_registered(name)
    for candidate in (folder, folder / "encoder"):
        if (candidate / "config.json").is_file():
            config = read_object(candidate / "config.json")
            if "model_type" not in config and (name is None or (own and "architecture" in config)):
                return _read_timm_folder(candidate, config, name)
            return _read_hub_folder(candidate, config, name, model_args)
    if any((folder / file).is_file() for file in WEIGHT_FILES):
        return _read_hub_folder(folder, {}, name, model_args)
    newest = read_newest(folder / "checkpoints")
    if newest is None:
        raise FileNotFoundError(
            f"{folder} holds neither config.json with model.safetensors, nor encoder/, nor checkpoints/."
        )
    return _of_checkpoint(*newest, name)


def _read_timm_folder(folder: Path, config: dict[str, Any], typed: str | None) -> Source:
    stated, weights, receipt = folder / "config.json", folder / "model.safetensors", folder / "receipt.json"
    if not weights.is_file():
        raise FileNotFoundError(f"{folder} has a config.json but no model.safetensors: export the encoder again.")
    if "architecture" not in config:
        raise ValueError(
            f"{folder}/config.json names neither timm's architecture nor transformers' model_type: write NAME:{folder},"
            " with timm's name of the architecture."
        )
    name = settle_name(config["architecture"], typed, stated)
    model_args = check_arguments(name, _without_classes(config.get("model_args")), stated)
    cfg = check_pixels(_dictionary(config, "pretrained_cfg", stated), stated)
    told = read_object(receipt) if receipt.is_file() else {}
    check_hashes(folder, told, ("config.json", "model.safetensors"))
    tensors = _without_classifier(_load(weights, load_file), cfg)
    channels, *size = cfg.get("input_size") or (3, 224, 224)
    if channels != 3:
        model_args.setdefault("in_chans", channels)
    return Source(
        name=name,
        model_args=model_args,
        preprocessing=preprocessing_of(cfg, size),
        tensors=tensors,
        frozen=check_names(told.get("frozen", []), receipt),
        path=folder,
        calibrated=_dictionary(told, "batchnorm", receipt).get("clean", True) is True,
        recognised="a timm folder" if is_registered(name) else "an exported network of your own",
    )


def _without_classifier(tensors: dict, cfg: Mapping[str, Any]) -> dict:
    """The tensors without a classifier, which folders of other tools contain."""
    classifiers = (cfg.get("classifier") or ()) if cfg.get("num_classes", 0) else ()
    names = [classifiers] if isinstance(classifiers, str) else list(classifiers)
    return {key: value for key, value in tensors.items() if not any(key.startswith(f"{name}.") for name in names)}


def _without_classes(arguments: object) -> object:
    if isinstance(arguments, dict):
        return {key: value for key, value in arguments.items() if key != "num_classes"}
    return {} if arguments is None else arguments


def _dictionary(holder: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    content = holder.get(key) or {}
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} has no dictionary under {key!r}.")
    return content


def _read_hub_folder(folder: Path, config: dict[str, Any], typed: str | None, model_args: dict[str, Any]) -> Source:
    """Reads a folder of transformers, or the weights in any folder whose architecture the user names."""
    weights = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} has a config.json but none of {', '.join(WEIGHT_FILES)}.")
    name, stated = typed, folder / "config.json"
    pixels: Mapping[str, Any] | None = None
    if name is None and "model_type" in config:
        name, brought = architecture_of(config, folder)
        name = settle_name(name, None, stated)
        model_args = check_arguments(name, _without_classes(brought), stated)
    if "model_type" in config and (stated_pixels := pixels_of(config, folder)):
        pixels = check_pixels(stated_pixels, folder)
    receipt = folder / "receipt.json"
    check_hashes(folder, read_object(receipt) if receipt.is_file() else {}, (weights.name,))
    return _of_toolkit(weights, read_weights(weights), name, model_args, pixels)


def _of_file(path: Path, name: str | None, model_args: dict[str, Any]) -> Source:
    receipt = path.parent / "receipt.json"
    check_hashes(path.parent, read_object(receipt) if receipt.is_file() else {}, (path.name,))
    try:
        content = _load(path, read_checkpoint) if path.suffix != ".safetensors" else None
    except NotOurs:
        content = None
    except ValueError:
        if name is None and zipfile.is_zipfile(path):
            raise
        content = None  # torch.save's old format has no checksums; read_weights recognises it
    if content is None:
        return _of_toolkit(path, read_weights(path), name, model_args)
    return _of_checkpoint(path, content, name)


def _of_checkpoint(path: Path, checkpoint: dict, typed: str | None = None) -> Source:
    """A checkpoint of fine-tuning, or of pre-training, whose BatchNorm saw only masked images (not `calibrated`)."""
    try:
        state, meta = checkpoint["state_dict"], checkpoint["meta"]
        if "classifier" in meta:
            return _of_classifier(path, state, meta)
        arguments, pixels = meta["encoder"], meta["pixels"]
        name = settle_name(arguments["name"], typed, path)
        model_args = check_arguments(name, arguments["model_args"], path)
        size = check_pixels({"img_size": arguments["img_size"]}, path)["img_size"]
        if size is None:
            raise ValueError(f"{path} states no img_size of its encoder.")
        channels = check_channels(arguments["in_chans"], path)
        frozen = check_names(arguments["frozen"], path)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of a2mim: it has no {error}.") from None
    if channels != 3:
        model_args.setdefault("in_chans", channels)
        check_arguments(name, model_args, path)
    return Source(
        name=name,
        model_args=model_args,
        preprocessing=preprocessing_of(check_pixels(pixels, path), size),
        tensors={key.removeprefix(PREFIX): value for key, value in check_tensors(state, path, PREFIX).items()},
        frozen=frozen,
        path=path,
        recognised="a checkpoint of a2mim",
    )


def _of_classifier(path: Path, state: dict, meta: dict) -> Source:
    """A checkpoint of fine-tuning, without its classifier."""
    arguments = classifier_arguments(meta["classifier"], path)
    name, model_args = arguments["name"], arguments["model_args"]
    own = built_as_stated(name, model_args, path).state_dict()
    return Source(
        name=name,
        model_args=model_args,
        preprocessing=preprocessing_of(check_pixels(meta["pixels"], path), arguments["img_size"]),
        tensors={
            key.removeprefix("model."): value
            for key, value in check_tensors(state, path).items()
            if key.removeprefix("model.") in own
        },
        frozen=arguments["frozen"],
        path=path,
        calibrated=True,
        recognised="a checkpoint of a2mim's fine-tuning",
    )


def built_as_stated(name: str, model_args: Mapping[str, Any], path: Path | None) -> TimmModel:
    """The model of a file's arguments on the meta device; the error names the file."""
    try:
        return on_meta(name, **model_args)
    except ValueError as error:
        if path is None:
            raise
        raise ValueError(f"{path}: {error}") from error


def classifier_arguments(stated: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The checked arguments of a checkpoint's classifier; see `a2mim.engine.classifier.rebuild_classified`.

    Raises:
        ValueError: a name or an argument that a file may not set.
    """
    if not isinstance(stated, Mapping):
        raise ValueError(f"{path} has no dictionary under 'classifier'.")
    name = settle_name(stated["name"], None, path)
    return {
        **stated,
        "name": name,
        "model_args": check_arguments(name, stated["model_args"], path),
        "frozen": check_names(stated["frozen"], path),
        "img_size": check_pixels({"img_size": stated["img_size"]}, path)["img_size"],
    }


def _of_toolkit(
    path: Path, content: object, name: str | None, model_args: dict | None = None, pixels: Mapping | None = None
) -> Source:
    """Weights of another toolkit for the model `name`; tensors that an encoder does not need are left out by name."""
    own = _unfilled(name, model_args or {}, path).state_dict() if name else {}
    recognised = recognise(content, own)
    if recognised is None:
        what = f"as those of {name} or as " if name else "as "
        raise ValueError(
            f"{path} is not a checkpoint of a2mim, and its keys are not recognised {what}one of the known formats"
            " (docs/starting_from.md lists them)."
        )
    if name is None:
        near = _likely(recognised)
        raise ValueError(
            f"{path} is not a checkpoint of a2mim: it holds the weights of {recognised.form.title}, without the name of"
            f" the architecture; write NAME:{path}, with timm's name of it, e.g. {near}:{path}."
        )
    tensors = dict(recognised.tensors)
    arguments = arguments_of(name, tensors, model_args or {}, recognised.masked) if is_registered(name) else {}
    model = _unfilled(name, arguments, path)
    own = model.state_dict()
    tensors = place_norm(tensors, own)
    told = f"{recognised.form.title}" + (f", in {recognised.where}" if recognised.where else "")
    for key in own:  # an unused counter, which older files lack
        if key.endswith("num_batches_tracked") and key.replace("num_batches_tracked", "running_mean") in tensors:
            tensors.setdefault(key, torch.zeros((), dtype=torch.int64))
    has_norm = any("norm_pre" in key or "head.norm" in key for key in tensors)
    if recognised.masked and "head.norm.weight" in own and not has_norm:
        tensors["head.norm.weight"] = torch.ones(own["head.norm.weight"].shape)
        tensors["head.norm.bias"] = torch.zeros(own["head.norm.bias"].shape)
        told += "; it has no final norm, so weight 1 and bias 0 are used"
    cfg = model.pretrained_cfg
    known = pixels or recognised.pixels or {}
    size = arguments.get("img_size", cfg["input_size"][1:])
    preprocessing = preprocessing_of({**cfg, **known}, [size, size] if isinstance(size, int) else size)
    if not known and preprocessing.mean != IMAGENET_MEAN:
        mean = ", ".join(f"{value:g}" for value in preprocessing.mean)
        told += f"; the file does not state mean and deviation, so those of {name} are used (mean {mean})"
    return Source(
        name=name,
        model_args=arguments,
        preprocessing=preprocessing.for_channels(arguments.get("in_chans", 3)),
        tensors=tensors,
        path=path,
        calibrated=not recognised.masked,
        recognised=told,
        left_out=dict(recognised.left_out),
    )


def _unfilled(name: str, arguments: dict[str, Any], path: Path) -> TimmModel:
    """The model for its keys and shapes; timm's takes no memory for its weights."""
    return (
        built_as_stated(name, arguments, path) if is_registered(name) else build_model(name, model_args=arguments).model
    )


def _likely(recognised: Recognised) -> str:
    """The first of the format's usual architectures that these tensors fit; else the first."""
    for name in recognised.form.examples:
        own = on_meta(name).state_dict()
        fits = [key for key in own if key in recognised.tensors and own[key].shape == recognised.tensors[key].shape]
        if 10 * len(fits) >= 9 * len(own) and set(recognised.tensors) <= set(own):
            return name
    return (recognised.form.examples or ("resnet50",))[0]


def _published(name: str) -> Source:
    """timm's own weights, or those at a hub's address; timm downloads them into its cache."""
    built = fetched(name, lambda: build_timm(name, pretrained=True))
    cfg = built.model.pretrained_cfg
    return Source(
        name=built.name,
        model_args=built.model_args,
        preprocessing=preprocessing_of(cfg, cfg["input_size"][1:]),
        tensors=built.model.state_dict(),
        calibrated=True,
        recognised=f"timm's published weights ({cfg.get('tag') or 'default'})",
    )


def _load(path: Path, read: Callable[[Path], dict]) -> dict:
    try:
        return read(path)
    except NotOurs:
        raise
    except Exception as error:  # readers report a broken file with any error
        reason = first_line(error) if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}): it is incomplete or not a file of a2mim.") from None


def preprocessing_of(cfg: Mapping[str, Any], size: Sequence[int]) -> Preprocessing:
    """Pixels as timm's pretrained_cfg, or a part of it, states them; without its crop. None is not stated."""
    return Preprocessing.of(
        {key: cfg[key] for key in ("mean", "std", "interpolation") if cfg.get(key) is not None}, size
    )

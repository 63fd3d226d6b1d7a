"""An encoder from wherever it lies: a run folder, an exported timm folder, a checkpoint, timm's own names, or the
weights of another toolkit.

Invariant: every tensor comes from the file or the call fails; nothing is ever left random without a word.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import nn

from a2mim.checkpoints import NotOurs, first_line, read_checkpoint, read_newest
from a2mim.foreign import architecture_of, arguments_of, on_meta, pixels_of, read_weights, recognise
from a2mim.networks import build_model, find_class, unknown_model
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD

PREFIX = "encoder.model."  # of the timm model's keys in a checkpoint
NAMED = 3  # keys that an error spells out
PUBLISHED = "pretrained"  # NAME:pretrained
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder of transformers or of a model hub


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
    recognised: str = "a timm name, with random weights"  # for the report
    left_out: dict = field(
        default_factory=dict
    )  # what the file holds beside the encoder: first part of the key -> count


def load_encoder(source: str | Path, allow_partial: bool = False, **overrides) -> tuple[nn.Module, dict]:
    """(timm model without classifier, in evaluation mode; {"mean", "std", "img_size": [H, W], "interpolation"}).

    Args:
        source: a run folder (its encoder/, else its newest checkpoint), an exported folder (config.json and
            model.safetensors), a folder of transformers, a checkpoint *.pth of a run; NAME:FILE, a timm name and any
            file of weights that `a2mim.foreign` recognises; NAME:pretrained, which downloads timm's; or a timm name,
            which gives random weights.
        allow_partial: tensors that the file lacks stay random, and those that the model lacks are left out.
        overrides: what timm.create_model takes, e.g. img_size or in_chans, to which the weights are then adapted.

    Raises:
        FileNotFoundError: the path does not exist, or holds no encoder.
        OSError: NAME:pretrained without a way to timm's weights.
        ValueError: an unknown name (with the nearest ones), a file that is not recognised, or weights that are not
            exactly the model's.
    """
    return load_reported(source, allow_partial, **overrides)[:2]


def load_reported(source: str | Path, allow_partial: bool = False, **overrides) -> tuple[nn.Module, dict, dict]:
    """What `load_encoder` returns, and the report: what was recognised, loaded, missing, unexpected and left out."""
    model, preprocessing, report = build_reported(read_source(source), allow_partial, **overrides)
    return model.eval(), preprocessing, report


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
            config = json.loads((candidate / "config.json").read_text(encoding="utf-8"))
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


def _read_timm_folder(folder: Path, config: dict) -> Source:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{folder} has a config.json but no model.safetensors: export the encoder again.")
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
    return Source(
        config["architecture"],
        model_args,
        _preprocessing(cfg, size),
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
        _preprocessing(pixels, arguments["img_size"]),
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
    pixels = _preprocessing(meta["pixels"], arguments["img_size"])
    told = "a checkpoint of a2mim's fine-tuning"
    return Source(name, model_args, pixels, tensors, list(arguments["frozen"]), path, calibrated=True, recognised=told)


def _of_foreign(path: Path, content, name: str | None, model_args: dict | None = None, pixels=None) -> Source:
    """Weights of another toolkit for timm's model `name`; what an encoder does without is left out by name."""
    make = on_meta if name is None or _is_timms(name) else lambda *a, **k: create(*a, **k)[0]
    own = make(name, **(model_args or {})).state_dict() if name else {}
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
    arguments = arguments_of(name, found.tensors, model_args or {}) if _is_timms(name) else {}
    model = make(name, **arguments)
    for key in model.state_dict():  # a count that nothing is computed from, which older files do not have
        if key.endswith("num_batches_tracked") and key.replace("num_batches_tracked", "running_mean") in found.tensors:
            found.tensors.setdefault(key, torch.zeros((), dtype=torch.int64))
    cfg = model.pretrained_cfg
    size = arguments.get("img_size", cfg["input_size"][1:])
    size = [size, size] if isinstance(size, int) else size
    told = f"{found.form.title}" + (f", in {found.where}" if found.where else "")
    preprocessing = _preprocessing(cfg | (pixels or found.pixels or {}), size)
    preprocessing = _for_channels(preprocessing, arguments.get("in_chans", 3))
    return Source(name, arguments, preprocessing, found.tensors, [], path, not found.masked, told, dict(found.left_out))


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
        _preprocessing(cfg, cfg["input_size"][1:]),
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


def _preprocessing(cfg: dict, size) -> dict:
    return {
        "mean": list(cfg.get("mean", IMAGENET_MEAN)),
        "std": list(cfg.get("std", IMAGENET_STD)),
        "img_size": list(size),
        "interpolation": cfg.get("interpolation", "bilinear"),
    }


def build(found: Source, allow_partial: bool = False, **overrides) -> tuple[nn.Module, dict]:
    """(the model with the source's tensors, all of them unless `allow_partial`; its preprocessing)."""
    return build_reported(found, allow_partial, **overrides)[:2]


def build_reported(found: Source, allow_partial: bool = False, **overrides) -> tuple[nn.Module, dict, dict]:
    """What `build` returns, and the report as plain values; see `load_reported`."""
    if found.tensors is None:
        model, size = create(found.name, **overrides)
        cfg = model.pretrained_cfg
        channels = overrides.get("in_chans") or cfg["input_size"][0]
        preprocessing = _for_channels(_preprocessing(cfg, size or cfg["input_size"][1:]), channels)
        return model, preprocessing, _report(found, model, {})
    overrides.pop("pretrained", None)  # the file's weights are the point
    model, size, report = _filled(found, found.model_args | overrides, allow_partial)
    channels = model.pretrained_cfg["input_size"][0]
    preprocessing = _for_channels(found.preprocessing | ({"img_size": size} if size else {}), channels)
    model.pretrained_cfg["input_size"] = (channels, *preprocessing["img_size"])
    return model, preprocessing, report


def initialise(model: nn.Module, model_args: dict, source: str | Path, allow_partial: bool = False) -> dict:
    """Loads a source's weights into a timm model that stands already, adapted to its size and channels.

    Args:
        model: with num_classes=0.
        model_args: what it was built with, beyond its name.
        source: as `load_encoder` takes it; a file of another toolkit may leave the name out.

    Returns:
        The report.

    Raises:
        ValueError: random weights, or those of another architecture; else as `load_encoder`.
    """
    name = model.pretrained_cfg["architecture"]
    found = read_source(source, name)
    if found.tensors is None:
        raise ValueError(f"{source} is a name with random weights: write {source}:{PUBLISHED} to start from timm's.")
    if found.name.partition(".")[0] != name:
        raise ValueError(f"{source} holds the weights of {found.name}, not of {name}.")
    filled, _, report = _filled(found, model_args, allow_partial)
    model.load_state_dict(filled.state_dict())
    return report


def _filled(found: Source, arguments: dict, allow_partial: bool) -> tuple[nn.Module, list | None, dict]:
    """(the model with the source's tensors, [H, W] or None, the report): timm adapts them to size and channels."""
    if not _is_timms(found.name):
        return _filled_own(found, arguments, allow_partial)
    cfg = {
        "source": None,  # where the name's own weights would come from
        "file": None,
        "input_size": (found.model_args.get("in_chans", 3), *found.preprocessing["img_size"]),
        "num_classes": 0,
        **{key: found.preprocessing[key] for key in ("mean", "std", "interpolation")},
    }

    def create_with(tensors):
        return create(found.name, pretrained=True, pretrained_cfg_overlay=cfg | {"state_dict": tensors}, **arguments)

    tensors = dict(found.tensors)
    if allow_partial:
        fresh = create(found.name, **arguments)[0].state_dict()
        tensors = fresh | {key: value for key, value in tensors.items() if key in fresh}
    try:
        model, size = create_with(dict(tensors))
    except RuntimeError as error:
        if not allow_partial:
            raise ValueError(_difference(found, create(found.name, **arguments)[0]) or first_line(error)) from None
        tensors |= {key: value for key, value in fresh.items() if tensors[key].shape != value.shape}
        model, size = create_with(dict(tensors))
    model.pretrained_cfg.pop("state_dict", None)  # else the weights would live twice
    model.pretrained_cfg["input_size"] = (arguments.get("in_chans", 3), *found.preprocessing["img_size"])
    problem = _not_adapted(found, model, arguments)
    if not allow_partial:
        problem = _difference(found, model, values=True) or problem
    report = _report(found, model, tensors)
    if problem or not report["loaded"]:
        raise ValueError(problem or f"nothing in {found.path} belongs to {found.name}: no weights would be loaded.")
    return model, size, report


def _filled_own(found: Source, arguments: dict, allow_partial: bool) -> tuple[nn.Module, list, dict]:
    """As `_filled` for a network that is not timm's: it is built for its size, nothing is adapted."""
    model, size = create(found.name, **{"img_size": found.preprocessing["img_size"]} | arguments)
    fresh = model.state_dict()
    fits = {k: v for k, v in found.tensors.items() if k in fresh and fresh[k].shape == v.shape}
    report = _report(found, model, fresh | fits)
    if report["partial"] and not allow_partial:
        raise ValueError(_difference(found, model))
    if not report["loaded"]:
        raise ValueError(f"nothing in {found.path} belongs to {found.name}: no weights would be loaded.")
    model.load_state_dict(fresh | fits)
    return model, size, report


def _is_timms(name: str) -> bool:
    return ":" in name or timm.is_model(name)


def create(name: str, img_size=None, pretrained: bool = False, **arguments) -> tuple[nn.Module, list | None]:
    """(timm model with num_classes=0, [H, W] or None): img_size goes to the model where it takes one. Or a network of
    the user's own, see `a2mim.networks`.
    """
    if not _is_timms(name):
        channels = arguments.pop("in_chans", 3)
        _, model, size, _ = build_model(name, img_size, channels, pretrained=pretrained, model_args=arguments)
        return model, list(size)
    if img_size is None:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments), None
    size = [img_size, img_size] if isinstance(img_size, int) else list(img_size)
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=size, **arguments), size
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments), size


def describe_report(report: dict) -> str:
    """One sentence of a report, for people."""
    if not report["of"]:
        return f"{report['architecture']}: {report['recognised']}"
    text = f"{report['loaded']} of {report['of']} tensors of {report['architecture']} from {report['recognised']}"
    for word in ("missing", "of another shape", "unexpected"):
        keys = report[word]
        text += f"; {len(keys)} {word} ({_named(keys)})" if keys else ""
    left = ", ".join(f"{count} of {what}" for what, count in report["left_out"].items())
    return text + (f"; left out: {left}" if left else "")


def _report(found: Source, model: nn.Module, tensors: dict) -> dict:
    """What became of every tensor, of the file and of the model; "partial" where some stayed random or unused."""
    own, given = model.state_dict(), found.tensors or {}
    report = {
        "source": str(found.path or found.name),
        "recognised": found.recognised,
        "architecture": found.name,
        "of": len(own) if given else 0,
        "loaded": sum(key in given and tensors[key] is given[key] for key in own),
        "missing": [key for key in own if given and key not in given],
        "unexpected": [key for key in given if key not in own],
        "of another shape": [key for key in own if key in given and tensors[key] is not given[key]],
        "left_out": found.left_out,
    }
    return report | {"partial": any(report[word] for word in ("missing", "unexpected", "of another shape"))}


def _difference(found: Source, model: nn.Module, values: bool = False) -> str:
    """One sentence on the keys that do not agree, or nothing; `values` also compares tensors of equal shape."""
    own, given = model.state_dict(), found.tensors
    missing = [key for key in own if key not in given]
    unexpected = [key for key in given if key not in own]
    same_shape = [key for key in own if key in given and own[key].shape == given[key].shape]
    reshaped = [] if values else [key for key in own if key in given and key not in same_shape]
    unloaded = [key for key in same_shape if values and not torch.equal(own[key].cpu(), given[key].to(own[key].dtype))]
    parts = [
        f"{len(keys)} {word} ({_named(keys)})"
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


def _not_adapted(found: Source, model: nn.Module, arguments: dict) -> str:
    """One sentence where timm has left a first convolution random, since it cannot adapt its channels; or nothing."""
    first = model.pretrained_cfg.get("first_conv") or ()
    own, channels = model.state_dict(), [found.model_args.get("in_chans", 3), arguments.get("in_chans", 3)]
    for key in (f"{name}.weight" for name in ([first] if isinstance(first, str) else first)):
        given = found.tensors.get(key)
        if given is None or key not in own or given.shape == own[key].shape or channels[0] == channels[1]:
            continue
        try:
            expected = adapt_input_conv(channels[1], given, base_chans=channels[0])
        except NotImplementedError:
            expected = None
        if expected is None or not torch.equal(expected.to(own[key].dtype), own[key].cpu()):
            return (
                f"{key} in {found.path}, {tuple(given.shape)}, cannot be adapted from {channels[0]} to {channels[1]}"
                f" channels and would stay random: load {found.name} with in_chans={channels[0]}."
            )
    return ""


def _named(keys: list[str]) -> str:
    return ", ".join(keys[:NAMED]) + (", …" if len(keys) > NAMED else "")


def _for_channels(preprocessing: dict, channels: int) -> dict:
    """Mean and deviation for another number of channels: their average, repeated."""
    averages = {
        key: [sum(preprocessing[key]) / len(preprocessing[key])] * channels
        for key in ("mean", "std")
        if len(preprocessing[key]) != channels
    }
    return preprocessing | averages

"""An encoder from wherever it lies (see sources.py), built and filled, with a report of what became of every tensor.

Invariant: every tensor comes from the file or the call fails; nothing is ever left random without a word.
"""

from pathlib import Path

import timm
import torch
from timm.models import adapt_input_conv
from torch import nn

from a2mim.checkpoints import first_line
from a2mim.pixels import Preprocessing
from a2mim.weights.converters import on_meta
from a2mim.weights.sources import PUBLISHED, Source, is_timms, preprocessing_of, read_source
from a2mim.wiring.networks import build_model

NAMED = 3  # keys that an error spells out


def load_encoder(source: str | Path, allow_partial: bool = False, **overrides) -> tuple[nn.Module, dict]:
    """(timm model without classifier, in evaluation mode; {"mean", "std", "img_size": [H, W], "interpolation"}).

    Args:
        source: a run folder (its encoder/, else its newest checkpoint), an exported folder (config.json and
            model.safetensors), a folder of transformers, a checkpoint *.pth of a run; NAME:FILE, a timm name and any
            file of weights that `a2mim.weights.converters` recognises; NAME:pretrained, which downloads timm's; or a
            timm name, which gives random weights.
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
    return model.eval(), preprocessing.to_dict(), report


def build(found: Source, allow_partial: bool = False, **overrides) -> tuple[nn.Module, Preprocessing]:
    """(the model with the source's tensors, all of them unless `allow_partial`; its preprocessing)."""
    return build_reported(found, allow_partial, **overrides)[:2]


def build_reported(found: Source, allow_partial: bool = False, **overrides) -> tuple[nn.Module, Preprocessing, dict]:
    """What `build` returns, and the report as plain values; see `load_reported`."""
    if found.tensors is None:
        model, size = create(found.name, **overrides)
        cfg = model.pretrained_cfg
        channels = overrides.get("in_chans") or cfg["input_size"][0]
        preprocessing = preprocessing_of(cfg, size or cfg["input_size"][1:]).for_channels(channels)
        return model, preprocessing, _report(found, model, {})
    overrides.pop("pretrained", None)  # the file's weights are the point
    model, size, report = _filled(found, found.model_args | overrides, allow_partial)
    channels = model.pretrained_cfg["input_size"][0]
    preprocessing = (found.preprocessing.at_size(size) if size else found.preprocessing).for_channels(channels)
    model.pretrained_cfg["input_size"] = (channels, *preprocessing.img_size)
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
    if not is_timms(found.name):
        return _filled_own(found, arguments, allow_partial)
    cfg = {
        "source": None,  # where the name's own weights would come from
        "file": None,
        "input_size": (found.model_args.get("in_chans", 3), *found.preprocessing.img_size),
        "num_classes": 0,
        **{key: getattr(found.preprocessing, key) for key in ("mean", "std", "interpolation")},
    }

    def create_with(tensors):
        return create(found.name, pretrained=True, pretrained_cfg_overlay=cfg | {"state_dict": tensors}, **arguments)

    tensors = dict(found.tensors)
    stated = on_meta(found.name, pretrained_cfg_overlay=cfg, **found.model_args)
    sizes = {key: value.numel() for key, value in stated.state_dict().items()}
    # timm resamples tables of positions without a word, also where nobody asked for another size
    strange = {key for key, value in tensors.items() if value.numel() != sizes.get(key, value.numel())}
    if strange and not allow_partial:
        raise ValueError(_difference(found, stated))
    if allow_partial:
        fresh = create(found.name, **arguments)[0].state_dict()
        tensors = fresh | {key: value for key, value in tensors.items() if key in fresh and key not in strange}
    try:
        model, size = create_with(dict(tensors))
    except RuntimeError as error:
        if not allow_partial:
            raise ValueError(_difference(found, create(found.name, **arguments)[0]) or first_line(error)) from None
        tensors |= {key: value for key, value in fresh.items() if tensors[key].shape != value.shape}
        model, size = create_with(dict(tensors))
    model.pretrained_cfg.pop("state_dict", None)  # else the weights would live twice
    model.pretrained_cfg["input_size"] = (arguments.get("in_chans", 3), *found.preprocessing.img_size)
    problem = _not_adapted(found, model, arguments)
    if not allow_partial:
        problem = _difference(found, model, values=True) or problem
    report = _report(found, model, tensors)
    if problem or not report["loaded"]:
        raise ValueError(problem or f"nothing in {found.path} belongs to {found.name}: no weights would be loaded.")
    return model, size, report


def _filled_own(found: Source, arguments: dict, allow_partial: bool) -> tuple[nn.Module, list, dict]:
    """As `_filled` for a network that is not timm's: it is built for its size, nothing is adapted."""
    model, size = create(found.name, **{"img_size": list(found.preprocessing.img_size)} | arguments)
    fresh = model.state_dict()
    fits = {k: v for k, v in found.tensors.items() if k in fresh and fresh[k].shape == v.shape}
    report = _report(found, model, fresh | fits)
    if report["partial"] and not allow_partial:
        raise ValueError(_difference(found, model))
    if not report["loaded"]:
        raise ValueError(f"nothing in {found.path} belongs to {found.name}: no weights would be loaded.")
    model.load_state_dict(fresh | fits)
    return model, size, report


def create(name: str, img_size=None, pretrained: bool = False, **arguments) -> tuple[nn.Module, list | None]:
    """(timm model with num_classes=0, [H, W] or None): img_size goes to the model where it takes one. Or a network of
    the user's own, see `a2mim.wiring.networks`.
    """
    if not is_timms(name):
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

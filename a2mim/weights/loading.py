"""Builds an encoder from any source (see sources.py) and loads its weights, with a report on every tensor.

Invariant: every tensor comes from the file, or the call fails. No parameter silently stays random.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from a2mim.checkpoints import first_line
from a2mim.pixels import Preprocessing
from a2mim.weights.converters import place_norm
from a2mim.weights.records import LoadReport, Source, name_some
from a2mim.weights.sources import PUBLISHED, built_as_stated, preprocessing_of, read_source
from a2mim.weights.trust import fault_of_values
from a2mim.wiring.model_type import TimmModel
from a2mim.wiring.networks import build_model
from a2mim.wiring.timm_models import BuiltModel, build_timm, is_registered, on_meta

__all__ = ["LoadReport", "Source", "describe_report", "load_encoder", "load_reported", "read_source"]


def load_encoder(source: str | Path, allow_partial: bool = False, **overrides) -> tuple[nn.Module, dict]:
    """(timm model without classifier, in evaluation mode; {"mean", "std", "img_size": [H, W], "interpolation"}).

    Nothing in a file is executed or imported, see `a2mim.weights.trust`.

    Args:
        source: a run folder (its encoder/, else its newest checkpoint), an exported folder (config.json and
            model.safetensors), a folder of transformers, or a checkpoint *.pth of a run; NAME:FILE, a timm name and a
            file of weights that `a2mim.weights.converters` recognises; NAME:pretrained, which downloads timm's weights;
            or a timm name, which gives random weights. NAME may be the dotted path of a network of the user's own,
            which is imported. A folder or checkpoint of such a network is written as my_package.MyNet:FOLDER.
        allow_partial: tensors that the file lacks stay random, and tensors that the model lacks are left out.
        overrides: arguments of timm.create_model, e.g. img_size or in_chans, to which the weights are then adapted.

    Raises:
        FileNotFoundError: the path does not exist, or holds no encoder.
        OSError: NAME:pretrained, but timm's weights cannot be downloaded.
        ValueError: the name is unknown (the message has the nearest names), the file is not recognised, or its weights
            are not exactly the model's.

    Examples:
        >>> model, preprocessing = a2mim.load_encoder("runs/tiny")
        >>> model.num_features, preprocessing["img_size"]
        (64, [32, 32])
    """
    return load_reported(source, allow_partial, **overrides)[:2]


def load_reported(source: str | Path, allow_partial: bool = False, **overrides) -> tuple[nn.Module, dict, LoadReport]:
    """The same as `load_encoder`, and the report: what was recognised, loaded, missing, unexpected and left out."""
    model, preprocessing, report = build_reported(read_source(source), allow_partial, **overrides)
    return model.eval(), preprocessing.to_dict(), report


def build(weights: Source, allow_partial: bool = False, **overrides) -> tuple[nn.Module, Preprocessing]:
    """(the model with all of the source's tensors, or some with `allow_partial`; its preprocessing)."""
    return build_reported(weights, allow_partial, **overrides)[:2]


def build_reported(
    weights: Source, allow_partial: bool = False, **overrides
) -> tuple[nn.Module, Preprocessing, LoadReport]:
    """The same as `build`, and the report; see `load_reported`."""
    if weights.tensors is None:
        built = create(weights.name, weights.model_args | overrides)
        channels = overrides.get("in_chans") or built.model.pretrained_cfg["input_size"][0]
        preprocessing = preprocessing_of(built.model.pretrained_cfg, built.img_size).for_channels(channels)
        return built.model, preprocessing, report_of(weights, built.model, {})
    overrides.pop("pretrained", None)  # the weights come from the file
    model, size, report = _filled(weights, weights.model_args | overrides, allow_partial)
    channels = model.pretrained_cfg["input_size"][0]
    pixels = _contents(weights)[1]
    preprocessing = (pixels.at_size(size) if size else pixels).for_channels(channels)
    model.pretrained_cfg["input_size"] = (channels, *preprocessing.img_size)
    return model, preprocessing, report


def initialise(model: TimmModel, model_args: dict, source: str | Path, allow_partial: bool = False) -> LoadReport:
    """Loads a source's weights into a timm model that exists already, adapted to its size and channels.

    Args:
        model: with num_classes=0.
        model_args: the arguments that built it, without its name.
        source: see `load_encoder`; for a file of another toolkit the name may be omitted.

    Raises:
        ValueError: the weights are random or belong to another architecture; also as in `load_encoder`.
    """
    name = model.pretrained_cfg["architecture"]
    # Size, channels and the place of the norm follow from the shapes in the file.
    told = {k: v for k, v in model_args.items() if k not in ("img_size", "in_chans", "head_norm_first")}
    weights = read_source(source, name, told)
    if weights.tensors is None:
        raise ValueError(f"{source} is a name with random weights: write {source}:{PUBLISHED} to start from timm's.")
    same = weights.name.partition(".")[0] if is_registered(weights.name) else weights.name
    if same != name:
        raise ValueError(f"{source} holds the weights of {weights.name}, not of {name}.")
    filled, _, report = _filled(weights, model_args, allow_partial)
    model.load_state_dict(filled.state_dict())
    return report


def _filled(
    weights: Source, arguments: dict[str, Any], allow_partial: bool
) -> tuple[TimmModel, list[int] | None, LoadReport]:
    """(the model with the source's tensors, [H, W] or None, the report). timm adapts them to size and channels."""
    if not is_registered(weights.name):
        return _filled_own(weights, arguments, allow_partial)
    weights = _with_norm_of(weights, arguments)
    given, pixels = _contents(weights)
    cfg = {
        "source": None,  # no other weights are fetched
        "file": None,
        "input_size": (weights.model_args.get("in_chans", 3), *pixels.img_size),
        "num_classes": 0,
        **{key: getattr(pixels, key) for key in ("mean", "std", "interpolation")},
    }
    tensors = dict(given)
    stated = built_as_stated(weights.name, weights.model_args, weights.path)
    sizes = {key: value.numel() for key, value in stated.state_dict().items()}
    # timm silently resamples tables of positions, even if no other size was requested
    strange = {key for key, value in tensors.items() if value.numel() != sizes.get(key, value.numel())}
    unlike = set(sizes) ^ set(tensors)
    if (strange or unlike) and not allow_partial:
        raise ValueError(_difference(weights, stated))
    if allow_partial:
        fresh = create(weights.name, arguments).model.state_dict()
        tensors = fresh | {key: value for key, value in tensors.items() if key in fresh and key not in strange}

    def create_with(tensors: dict) -> BuiltModel:
        return create(weights.name, arguments, cfg | {"state_dict": dict(tensors)})

    try:
        model = create_with(tensors).model
    except RuntimeError as error:
        if not allow_partial:
            raise ValueError(_difference(weights, create(weights.name, arguments).model) or first_line(error)) from None
        tensors |= {key: value for key, value in fresh.items() if tensors[key].shape != value.shape}
        model = create_with(tensors).model
    model.pretrained_cfg.pop("state_dict", None)  # otherwise the weights would be in memory twice
    model.pretrained_cfg["input_size"] = (arguments.get("in_chans", 3), *pixels.img_size)
    problem = _not_adapted(weights, model, arguments)
    if not allow_partial:
        problem = _difference(weights, model, _resampled(given, stated, model)) or problem
    report = report_of(weights, model, tensors)
    _refuse(weights, report, problem)
    size = arguments.get("img_size")
    return model, [size, size] if isinstance(size, int) else size and list(size), report


def _contents(weights: Source) -> tuple[dict[str, Tensor], Preprocessing]:
    """(the tensors, the preprocessing) of a source that is more than a name."""
    assert weights.tensors is not None and weights.preprocessing is not None
    return weights.tensors, weights.preprocessing


def _with_norm_of(weights: Source, arguments: dict[str, Any]) -> Source:
    """The source with ConvNeXt's last norm before or after the pooling, as the model of these arguments has it."""
    key = "head_norm_first"
    if bool(arguments.get(key)) == bool(weights.model_args.get(key)):
        return weights
    model_args = weights.model_args | {key: bool(arguments.get(key))}
    tensors = place_norm(_contents(weights)[0], on_meta(weights.name, **model_args).state_dict())
    return replace(weights, model_args=model_args, tensors=tensors)


def _filled_own(
    weights: Source, arguments: dict[str, Any], allow_partial: bool
) -> tuple[nn.Module, list[int], LoadReport]:
    """Like `_filled`, for a network that is not timm's: it is built for its size, and nothing is adapted."""
    given, pixels = _contents(weights)
    built = create(weights.name, {"img_size": list(pixels.img_size)} | arguments)
    fresh = built.model.state_dict()
    fits = {k: v for k, v in given.items() if k in fresh and fresh[k].shape == v.shape}
    report = report_of(weights, built.model, fresh | fits)
    _refuse(weights, report, _difference(weights, built.model) if report.partial and not allow_partial else "")
    built.model.load_state_dict(fresh | fits)
    return built.model, list(built.img_size), report


def _refuse(weights: Source, report: LoadReport, problem: str) -> None:
    """Raises ValueError if tensors do not fit, if none fits, or if some are not finite."""
    if problem:
        raise ValueError(problem)
    if not report.loaded:
        raise ValueError(f"nothing in {weights.path} belongs to {weights.name}: no weights would be loaded.")
    if fault := fault_of_values(_contents(weights)[0]):
        raise ValueError(
            f"the weights in {weights.path} cannot be used: {fault}. The training has diverged or the file is damaged;"
            " give an earlier checkpoint."
        )


def create(name: str, arguments: dict[str, Any], overlay: dict[str, Any] | None = None) -> BuiltModel:
    """A network without a classifier, from its name and `arguments`, which include image size and channels.

    Args:
        overlay: timm's `pretrained_cfg_overlay`; if it is given, the weights are those in its "state_dict".
    """
    rest = dict(arguments)
    size, channels = rest.pop("img_size", None), rest.pop("in_chans", None)
    pretrained = rest.pop("pretrained", False) or overlay is not None
    if is_registered(name):
        return build_timm(name, size, channels, pretrained=pretrained, model_args=rest, cfg_overlay=overlay)
    return build_model(name, size, channels or 3, model_args=rest)


def describe_report(report: LoadReport | dict) -> str:
    """A report, or its plain values, as one sentence."""
    return str(report if isinstance(report, LoadReport) else LoadReport.from_dict(report))


def report_of(weights: Source, model: nn.Module, tensors: dict[str, Tensor]) -> LoadReport:
    """The report on every tensor; `tensors` are those that the model was given."""
    own, given = model.state_dict(), weights.tensors or {}
    return LoadReport(
        source=str(weights.path or weights.name),
        recognised=weights.recognised,
        architecture=weights.name,
        of=len(own) if given else 0,
        loaded=sum(key in given and tensors[key] is given[key] for key in own),
        missing=[key for key in own if given and key not in given],
        unexpected=[key for key in given if key not in own],
        reshaped=[key for key in own if key in given and tensors[key] is not given[key]],
        left_out=weights.left_out,
    )


def _resampled(given: Mapping[str, Tensor], stated: nn.Module, model: nn.Module) -> set[str]:
    """The table of positions, where the model has it as interpolation from the source's grid to its own makes it.

    It may have the same shape and other numbers: 2 x 4 cells are as many as 4 x 2.
    """
    old, new = grid_of_tokens(stated), grid_of_tokens(model)
    table, own = given.get("pos_embed"), model.state_dict().get("pos_embed")
    if old is None or new is None or old == new or table is None or own is None or table.shape != own.shape:
        return set()
    prefix = table.shape[1] - math.prod(old)
    expected = resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=prefix)
    return {"pos_embed"} if torch.allclose(expected.to(own), own, atol=1e-4) else set()


def grid_of_tokens(model: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of the patches whose positions are learned, or None where the model does not tell."""
    grid = getattr(model, "grid", None) or getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return (int(grid[0]), int(grid[1])) if isinstance(grid, tuple | list) and len(grid) == 2 else None


def _difference(weights: Source, model: nn.Module, resampled: Collection[str] | None = None) -> str:
    """A sentence on keys that do not agree, or "".

    Args:
        resampled: keys whose values may differ; those of all other tensors of equal shape must be equal. None: only
            keys and shapes count.
    """
    values = resampled is not None
    own, given = model.state_dict(), _contents(weights)[0]
    missing = [key for key in own if key not in given]
    unexpected = [key for key in given if key not in own]
    same_shape = [key for key in own if key in given and own[key].shape == given[key].shape]
    reshaped = [] if values else [key for key in own if key in given and key not in same_shape]
    compared = [key for key in same_shape if resampled is not None and key not in resampled]
    unloaded = [key for key in compared if not _same(own[key], given[key])]
    parts = [
        f"{len(keys)} {word} ({name_some(keys)})"
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
    return f"the weights in {weights.path} are not those of {weights.name}, of {len(own)} tensors: {'; '.join(parts)}."


def _same(own: Tensor, given: Tensor) -> bool:
    """True if the numbers are the same. Values that are not finite are reported elsewhere."""
    return torch.equal(own.cpu().nan_to_num(), given.to(own.dtype).nan_to_num())


def _not_adapted(weights: Source, model: TimmModel, arguments: dict) -> str:
    """A sentence if timm left a first convolution random because it cannot adapt its channels; or ""."""
    first = model.pretrained_cfg.get("first_conv") or ()
    own, channels = model.state_dict(), [weights.model_args.get("in_chans", 3), arguments.get("in_chans", 3)]
    for key in (f"{name}.weight" for name in ([first] if isinstance(first, str) else first)):
        given = _contents(weights)[0].get(key)
        if given is None or key not in own or given.shape == own[key].shape or channels[0] == channels[1]:
            continue
        try:
            expected = adapt_input_conv(channels[1], given, base_chans=channels[0])
        except NotImplementedError:
            expected = None
        if expected is None or not torch.equal(expected.to(own[key].dtype), own[key].cpu()):
            return (
                f"{key} in {weights.path}, {tuple(given.shape)}, cannot be adapted from {channels[0]} to {channels[1]}"
                f" channels and would stay random: load {weights.name} with in_chans={channels[0]}."
            )
    return ""

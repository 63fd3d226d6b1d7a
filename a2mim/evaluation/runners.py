"""Runs each kind of protocol on a context: features, a classifier, a result with every constant."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from a2mim.evaluation import robustness_run
from a2mim.evaluation.attentive import AttentiveHeads
from a2mim.evaluation.attentive_probe import attentive_stack, queries_of
from a2mim.evaluation.cells import LAST
from a2mim.evaluation.context import EvalContext
from a2mim.evaluation.feature_set import FeatureSet
from a2mim.evaluation.features import refuse_below_one
from a2mim.evaluation.heads import LarsHeads, LinearHeads
from a2mim.evaluation.knn import check_constants, knn
from a2mim.evaluation.linear import epochs_for, hold_out, linear_probe, schedule
from a2mim.evaluation.logreg import logreg
from a2mim.evaluation.probe import Labelled, Stack, check_probe, probe
from a2mim.evaluation.subsets import draw_subset, parse_size, write_list
from a2mim.evaluation.taps import CELLS, dino_parts, grid_parts
from a2mim.protocols import Protocol, read_protocol

COUNTS = (
    *("k", "epochs", "batch_size", "c_values", "max_iterations", "tries", "queries", "reduction"),
    *("least_steps", "batch_cells", "bank_cells", "crop", "steps", "warmup_steps", "images"),
)


def check(protocol: Protocol) -> None:
    """Refuses constants out of range, before any image is looked at."""
    constants = protocol.constants
    refuse_below_one(**{key: constants[key] for key in COUNTS if key in constants})
    if protocol.kind == "knn":
        for k in (constants["k"], *constants["also_k"]):
            check_constants(k, constants["temperature"])
    if constants.get("train_view", "crops") not in ("crops", "center"):
        raise ValueError(f"train_view={constants['train_view']!r} of {protocol.name} must be crops or center.")
    if not 0 < constants.get("held_out", 0.5) < 1:
        raise ValueError(f"held_out={constants['held_out']} of {protocol.name} must lie between 0 and 1.")
    for key in ("k_values", "weight_decays"):
        if not constants.get(key, [1]):
            raise ValueError(f"{key} of {protocol.name} is empty: give at least one value.")
    if not constants.get("base_lrs", [1]):
        raise ValueError(f"base_lrs of {protocol.name} is empty: give at least one rate.")
    for size in constants.get("subsets", ()):
        parse_size(size)


def parts_of(protocol: Protocol, context: EvalContext) -> tuple[str, ...]:
    """The parts that the protocol needs of every image, so that one pass can serve several protocols."""
    if protocol.kind in ("linear", "mae-linear", "attentive"):
        inputs = _inputs(protocol, context)
        return tuple(dict.fromkeys(part for parts in inputs.values() for part in parts))
    return (protocol.constants["pooling"],)


def run_knn(context: EvalContext, protocol: Protocol, out: Path | None = None) -> list[dict]:
    """DINO's weighted k-NN."""
    train, test = _sets(context, protocol)
    return [_knn(context, protocol, train, test, slice(None))]


def run_logreg(context: EvalContext, protocol: Protocol, out: Path | None = None) -> list[dict]:
    train, test = _sets(context, protocol)
    return [_logreg(context, protocol, train, test, slice(None))]


def run_linear_cached(context: EvalContext, protocol: Protocol, out: Path | None = None) -> list[dict]:
    """Softmax regression on standardised features of central views."""
    train, test = _sets(context, protocol)
    c, (part,) = protocol.constants, parts_of(protocol, context)
    settings = {key: c[key] for key in ("epochs", "batch_size", "base_lrs", "held_out", "seed")}
    found = linear_probe(train.features(part), train.labels, test.features(part), test.labels, **settings)
    return [_result(context, protocol, found | {"pooling": context.pooling(c)}, train, test)]


def run_linear(context: EvalContext, protocol: Protocol, out: Path | None = None) -> list[dict]:
    """Heads trained on features: DINO's linear one, DINOv2's grid, MAE's under LARS, and attentive probes."""
    c, inputs, parts = protocol.constants, _inputs(protocol, context), parts_of(protocol, context)
    train, test = _sets(context, protocol)
    images, tested = train.labelled(parts), test.labelled(parts)
    check_probe(images, tested)
    classes, mae = torch.unique(train.labels), protocol.kind == "mae-linear"
    held, kept, note = _split(train, c)
    judged = held if len(held) else kept
    training = context.training_pass(images, kept, train.rows, c)
    length = c.get("epoch_length") or training.steps
    epochs = epochs_for(c, length)
    stacks = [_stack(context, protocol, name, joined, images, len(classes), mae) for name, joined in inputs.items()]
    found = probe(
        stacks,
        training,
        classes,
        dataclasses.replace(
            images, parts={p: f[judged] for p, f in images.parts.items()}, labels=images.labels[judged]
        ),
        tested,
        epochs,
        schedule(c | {"epochs": epochs}),
        length,
        per_iteration=mae or c.get("schedule", "iteration") == "iteration",
        track_best=c.get("features") != "grid",
    )
    if not len(held):
        found["held_out_top1"] = None  # the held-out images were training images too
    found |= {"held_out": len(held), "seed": c["seed"], "n_train": len(kept), "n_classes": len(classes)}
    found |= {"batch_size": training.batch_size, "epochs": epochs}
    if protocol.kind == "attentive":
        heads = stacks[0].heads
        assert isinstance(heads, AttentiveHeads)
        found["queries"] = queries_of(c, heads.dim)
    if mae and len(c["base_lrs"]) == 1:
        note = f"one rate, as published, not swept; {note}" if note else "one rate, as published, not swept"
    notes = "; ".join(filter(None, (found.pop("note", ""), note)))
    return [_result(context, protocol, found | ({"note": notes} if notes else {}), train, test, training.loader)]


def run_robustness(context: EvalContext, protocol: Protocol, out: Path | None = None) -> list[dict]:
    """A linear probe of clean images under damage."""
    return robustness_run.run(context, protocol)


def run_low_shot(context: EvalContext, protocol: Protocol, out: Path | None = None) -> list[dict]:
    """Classifiers on frozen features of class-balanced subsets, each drawn `tries` times."""
    c = protocol.constants
    train, test = _sets(context, protocol)
    results = []
    for size in telling_subsets(train.labels.numpy(), c["subsets"]):
        for seed in range(c["seed"], c["seed"] + c["tries"]):
            rows = draw_subset(train.labels.numpy(), size, seed)
            chosen = {"subset": size, "subset_seed": seed, "n_train": len(rows)}
            if out is not None:
                name = f"{str(size).replace('%', 'percent')}-seed{seed}.tsv"
                chosen["list"] = str(write_list(context.train, train.rows[rows], out / "low-shot" / name))
            for classifier in c["classifiers"]:
                results.append(_few(context, protocol, classifier, train, test, rows, chosen))
    return results


def telling_subsets(labels: np.ndarray, sizes: list) -> list:
    """The subsets that are large enough; a warning names the others.

    A share of each class that comes to one image a class leaves none to choose by, and tells chance from chance. A
    requested number of images per class is never refused.
    """
    most = np.unique(labels, return_counts=True)[1].max()
    few = [size for size in sizes if (share := parse_size(size)[0]) is not None and round(share * most) <= 1]
    kept = [size for size in sizes if size not in few]
    if few:
        names = " and ".join(map(str, few))
        said = f"low-shot leaves out {names} of labels: that is one image a class, which tells nothing"
        advice = """for five a class add --set 'low-shot.subsets=["5"]'"""
        warnings.warn(f"{said}; {advice}", stacklevel=3)
    return kept


def _few(context, protocol, classifier: str, train, test, rows, chosen: dict) -> dict:
    """One classifier on one subset; its own constants and the subset's are the result's."""
    runs = {"knn": _knn, "logreg": _logreg}
    inner = read_protocol(classifier)
    if inner.kind not in runs:
        raise ValueError(f"classifiers of low-shot are of the kinds {', '.join(runs)}: {classifier} is not.")
    constants = {key: protocol.constants.get(key, value) for key, value in inner.constants.items()}
    constants |= {key: chosen[key] for key in ("subset", "subset_seed")} | {"classifier": classifier}
    used = dataclasses.replace(protocol, kind=inner.kind, constants=constants)
    return runs[inner.kind](context, used, train, test, torch.from_numpy(rows)) | chosen


def _knn(context: EvalContext, protocol: Protocol, train: FeatureSet, test: FeatureSet, rows) -> dict:
    c = protocol.constants
    features, labels = train.features(c["pooling"])[rows], train.labels[rows]
    settings = {key: c[key] for key in ("k", "temperature", "also_k")}
    found = knn(features, labels, test.features(c["pooling"]), test.labels, **settings, device=context.device)
    found["by_k"] = {str(k): pair for k, pair in found["by_k"].items()}
    return _result(context, protocol, found | {"pooling": context.pooling(c)}, train, test)


def _logreg(context: EvalContext, protocol: Protocol, train: FeatureSet, test: FeatureSet, rows) -> dict:
    c = protocol.constants
    features, labels = train.features(c["pooling"])[rows], train.labels[rows]
    keys = ("c_powers", "c_values", "max_iterations", "tolerance", "held_out")
    settings = {key: c[key] for key in keys} | {"seed": c.get("seed", 0), "device": context.device}
    found = logreg(features, labels, test.features(c["pooling"]), test.labels, **settings)
    return _result(context, protocol, found | {"pooling": context.pooling(c)}, train, test)


def _sets(context: EvalContext, protocol: Protocol) -> tuple[FeatureSet, FeatureSet]:
    parts = parts_of(protocol, context)
    train, test = (context.features(split, parts, protocol.constants) for split in ("train", "test"))
    return train, test


def _inputs(protocol: Protocol, context: EvalContext) -> dict[str, tuple[str, ...]]:
    """{what it is: parts to join} of each stack of heads."""
    c, model = protocol.constants, context.model
    if protocol.kind == "attentive":
        last = c["map"] == LAST
        part = CELLS if last else f"{CELLS}:{c['map']}"
        height, width = context.encoder.reader(part).grid
        return {f"{height}×{width} cells of {'the last map' if last else c['map']}": (part,)}
    if protocol.kind == "mae-linear":
        has_token = getattr(model, "cls_token", None) is not None
        part = "default" if c["pooling"] == "cls" and not has_token else c["pooling"]
        return {context.pooling({"pooling": part}): (part,)}
    if c["features"] == "grid":
        images = torch.randn(2, context.encoder.channels, *context.img_size, generator=torch.Generator().manual_seed(0))
        return grid_parts(model, images.to(context.device), c["blocks"])
    parts, words = dino_parts(model, None if c["blocks"] == "auto" else c["blocks"])
    return {words: parts}


def _stack(context: EvalContext, protocol: Protocol, name: str, parts, images: Labelled, n_classes: int, mae) -> Stack:
    """The heads that a protocol trains on some parts."""
    c = protocol.constants
    if protocol.kind == "attentive":
        return attentive_stack(name, parts, context.encoder.reader(parts[0]).channels, n_classes, c, context.device)
    settings = (c["base_lrs"], sum(images.parts[part].shape[1] for part in parts), n_classes)
    heads = (
        LarsHeads(*settings, c, c["seed"], context.device) if mae else LinearHeads(*settings, c["seed"], context.device)
    )
    return Stack(name, parts, heads, list(c["base_lrs"]))


def _split(train: FeatureSet, constants: dict) -> tuple[Tensor, Tensor, str]:
    """(held-out rows, if any, rows to train on, a note), of the readable images."""
    every, none = torch.arange(len(train)), torch.arange(0)
    held = hold_out(train.labels, constants["held_out"], constants["seed"])
    n_heads = len(constants["base_lrs"]) * len(constants.get("weight_decays", [0.0]))
    if n_heads == 1 and constants.get("features") != "grid":
        return none, every, ""  # there is nothing to choose
    if len(held) == 0:
        return none, every, "no class has two training images, so the head was chosen by the training images"
    kept = torch.ones(len(train), dtype=torch.bool)
    kept[held] = False
    return held, every[kept], ""


def _result(
    context: EvalContext, protocol: Protocol, found: dict, train: FeatureSet, test: FeatureSet, *loaders
) -> dict:
    """Plain values, but for "correct": what `write_result` takes."""
    faults = train.entry.faults + test.entry.faults
    for loader in filter(None, loaders):  # a training image counts once for each time it was requested
        faults += Counter(loader.faults.unreadable)
    plain = {key: value for key, value in found.items() if not isinstance(value, Tensor)}
    return {
        **plain,
        "protocol": protocol.name,
        "protocol_hash": protocol.hash,
        "overridden": protocol.overridden,
        "constants": protocol.constants,
        "sources": list(protocol.sources),
        "top1_last": plain["top1"],
        "top1_best": plain.get("best_top1"),
        "unreadable": dict(faults),
        **context.about(protocol.constants),
        **context.answers(found["correct"], test),
    }


RUNNERS = {
    "knn": run_knn,
    "linear": run_linear,
    "mae-linear": run_linear,
    "attentive": run_linear,
    "robustness": run_robustness,
    "linear-cached": run_linear_cached,
    "logreg": run_logreg,
    "low-shot": run_low_shot,
}

"""mmpretrain, mmdet, mmseg: encoder.pth, and encoder.py, which a configuration takes as its base.

Their loader raises only where the prefix matches nothing at all; any other wrong key is a line in a log.
"""

import copy
import pprint
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from a2mim.export import openmmlab_native, timm_folder
from a2mim.export.openmmlab_native import Native
from a2mim.export.target import Facts, Subject, Target, Written
from a2mim.files import write_text

PREFIX = "backbone."
PYRAMIDS = ("ResNet", "ResNeXt", "SwinTransformer", "ConvNeXt")  # what necks of detectors and segmenters take
CODE = """\
import numpy as np
import torch
from mmengine.config import Config

import {library}.models  # registers its classes
from {library}.registry import MODELS

images = torch.from_numpy(np.load("reference.npz")["images"])  # yours: normalised, float32 (B, {size})
config = Config.fromfile("encoder.py")
model = MODELS.build(config.{part})
model.init_weights()  # reads encoder.pth, as the runner does
model.eval()
with torch.no_grad():
    {use}
"""
BACKBONE = {"part": "model.backbone", "use": "maps = model(images)\nlast = maps[-1]"}
CLASSIFIER = {"part": "model", "use": "pooled = model(images)"}
NOTES = """\
`encoder.py` is meant as a base: `_base_ = ["encoder.py"]` in a configuration of your own gives it the network with
its weights and `model.data_preprocessor` with mean and deviation{pipeline}. Mind that OpenMMLab only logs keys that do
not fit. {how}
"""


def refuse_dense(subject: Subject, library: str) -> str:
    found = openmmlab_native.native(subject)
    if found is None or found.config["type"] not in PYRAMIDS:
        return (
            f"{library}'s necks want a pyramid of maps from a class it knows; those that go are ResNet, ResNeXt,"
            " ConvNeXt and Swin where its maps are whole windows; any other goes to mmpretrain"
        )
    return ""


def write(subject: Subject, folder: Path, library: str) -> Written:
    found = openmmlab_native.native(subject)
    contract = (f"mmpretrain.{found.config['type']}", dict(found.config)) if found else None
    if found is None:
        found = through_timm(subject)
        contract = (
            f"mmpretrain.{found.config['type']}",
            {"architecture": subject.name, "model_args": subject.model_args},
        )
    if library != "mmpretrain":
        found, left_random = dense(found, subject, library)
    else:
        left_random = ()
    state = {PREFIX + key: value for key, value in found.tensors.items()}
    torch.save({"state_dict": state, "meta": {}}, folder / "encoder.pth")
    write_text(folder / "encoder.py", configuration(found, subject, library))
    last = "pooled" if found.config["type"] == "TimmClassifier" else "last"
    own = found.config["type"].split(".")
    how = f"The class is {own[-1]}{', of mmpretrain' if own[:-1] else ''}."
    pipeline = ", and `test_pipeline` with the resize and the crop" if library == "mmpretrain" else ""
    return Written(
        {"maps": found.maps} if len(found.maps) > 1 else {last: found.maps[0]},
        (library, *(["mmpretrain"] if own[:-1] else []), *timm_folder.ours(subject)),
        found.tensors,
        "encoder.pth",
        file_prefix=PREFIX,
        left_random=left_random,
        contract=contract,
        notes=NOTES.format(pipeline=pipeline, how=how),
        details={"class": found.config["type"]},
    )


def through_timm(subject: Subject) -> Native:
    """One of mmpretrain's two wrappers of timm: TIMMBackbone takes the pooling away, and its maps are what the model
    gives then; where an architecture does not let it, TimmClassifier.
    """
    arguments = {"model_name": subject.name, **subject.model_args}
    if subject.input_size[0] != 3:
        arguments["in_chans"] = subject.input_size[0]
    model = copy.deepcopy(subject.model)
    try:
        model.reset_classifier(0, "")
    except Exception:  # asserts, or another signature
        config = {"type": "TimmClassifier", "num_classes": 0, **arguments}
        return Native(config, subject.tensors, (subject.outputs["pooled"],))
    with torch.no_grad():
        maps = model.eval()(subject.images)
    if "in_chans" in arguments:
        arguments["in_channels"] = arguments.pop("in_chans")
    tensors = {f"timm_model.{key}": value for key, value in subject.tensors.items()}
    maps = tuple(maps) if isinstance(maps, list | tuple) else (maps,)
    return Native({"type": "TIMMBackbone", **arguments}, tensors, maps)


def dense(found: Native, subject: Subject, library: str) -> tuple[Native, tuple[str, ...]]:
    """With all four maps, by mmdet's and mmseg's arguments; and the keys of the layers that are new with them."""
    config, stages = dict(found.config) | {"out_indices": (0, 1, 2, 3)}, range(3)
    maps = found.maps
    left_random: tuple[str, ...] = ()
    if config["type"] == "ResNeXt":
        config["base_width"] = config.pop("width_per_group")
    if config["type"] in ("SwinTransformer", "ConvNeXt"):
        # mmdet and mmseg have no ConvNeXt, and their Swin shifts the windows of maps that are one window, as
        # mmpretrain's does not and as timm's did not when it was trained
        left_random = tuple(f"norm{stage}.{part}" for stage in stages for part in ("weight", "bias"))
        if config["type"] == "ConvNeXt":
            config["gap_before_final_norm"] = False
            maps = (openmmlab_native.normed_map(subject),)
        config["type"] = f"mmpretrain.{config['type']}"
    return Native(config, found.tensors, maps), left_random


def configuration(found: Native, subject: Subject, library: str) -> str:
    """encoder.py"""
    facts = subject.preprocessing
    scale = {key: [round(255 * v, 4) for v in values] for key, values in (("mean", facts.mean), ("std", facts.std))}
    swap = {"to_rgb" if library == "mmpretrain" else "bgr_to_rgb": len(scale["mean"]) == 3}
    kind = {"mmpretrain": {}, "mmdet": {"type": "DetDataPreprocessor"}, "mmseg": {"type": "SegDataPreProcessor"}}
    checkpoint = {"type": "Pretrained", "checkpoint": "{{ fileDirname }}/encoder.pth", "prefix": PREFIX}
    network = {**found.config, "init_cfg": checkpoint}
    if network["type"] != "TimmClassifier":
        network = {"backbone": network}
    parts: dict[str, Any] = {"model": {"data_preprocessor": {**kind[library], **scale, **swap}, **network}}
    imports = ["mmpretrain.models"] if found.config["type"].startswith("mmpretrain.") else []
    imports += ["a2mim"] if subject.ours else []
    if imports:
        parts = {"custom_imports": {"imports": imports, "allow_failed_imports": False}} | parts
    if library == "mmpretrain":
        height, width = facts.img_size
        resize = {
            "type": "ResizeEdge",
            "scale": round(max(height, width) / timm_folder.CROP_PCT),
            "edge": "short",
            "backend": "pillow",
            "interpolation": facts.interpolation,
        }
        crop = {"type": "CenterCrop", "crop_size": (width, height)}
        parts["test_pipeline"] = [{"type": "LoadImageFromFile"}, resize, crop, {"type": "PackInputs"}]
    lines = [f"{name} = {pprint.pformat(value, sort_dicts=False, width=110)}\n" for name, value in parts.items()]
    return "\n".join(['"""An encoder exported by a2mim: weights, input and class, as a base."""\n', *lines])


def fill(library: str, facts: Facts) -> str:
    return CODE.format(library=library, size=facts.size, **(CLASSIFIER if facts.classifier else BACKBONE))


def row(library: str, refuse: Callable[[Subject], str]) -> Target:
    return Target(library, partial(write, library=library), partial(fill, library), refuse)


MMPRETRAIN = row("mmpretrain", lambda subject: "")
MMDET = row("mmdet", partial(refuse_dense, library="mmdet"))
MMSEG = row("mmseg", partial(refuse_dense, library="mmseg"))

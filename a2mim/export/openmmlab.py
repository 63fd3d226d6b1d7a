"""mmpretrain, mmdet, mmseg: encoder.pth, and encoder.py, which a configuration takes as its base.

mmdet and mmseg also get a configuration that trains a detector or a segmenter on it. Their loaders raise an error only
where the prefix matches no key at all; any other wrong key is a line in a log.
"""

import copy
import pprint
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from a2mim.export import openmmlab_dense, openmmlab_native, timm_folder
from a2mim.export.facts import TIMM_MAPS
from a2mim.export.openmmlab_native import Native
from a2mim.export.openmmlab_training import FILES, training_config
from a2mim.export.target import Facts, Subject, Target, Written
from a2mim.files import write_text

PREFIX = "backbone."
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
{training}"""
BACKBONE = {"part": "model.backbone", "use": "maps = model(images)\nlast = maps[-1]"}
CLASSIFIER = {"part": "model", "use": "pooled = model(images)"}
# mmseg and mmdet refuse mmcv 2.2 by an assertion, and mmcv-lite has none of the operators that they import
TRAINING = """\
strides = torch.tensor([4, 8, 16, 32])

try:
    from {library}.registry import MODELS as HEADS
    from {library}.utils import register_all_modules

    register_all_modules()  # makes {library} the scope of names
except (AssertionError, ImportError) as error:
    reached = f"the maps of the backbone; {library} cannot be imported: {{error}}"
else:
    whole = HEADS.build(Config.fromfile("{file}").model)
    whole.init_weights()
    pyramid = whole.neck(maps) if whole.with_neck else maps
    strides = torch.tensor([images.shape[-1] // level.shape[-1] for level in pyramid[:4]])
"""
STEPS = {
    "mmseg": """\
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    height, width = images.shape[2:]
    labels = PixelData(data=torch.zeros(1, height, width, dtype=torch.long))
    losses = whole.loss(images, [SegDataSample(gt_sem_seg=labels) for _ in images])
    sum(value for name, value in losses.items() if "loss" in name).backward()
    reached = "the gradients of a training step of the segmenter"
""",
    "mmdet": """\
    scores, boxes = whole.rpn_head(pyramid)
    reached = "the region proposal head; RoIAlign and NMS, which mmcv compiles, were not called"
""",
}
NOTES = """\
`encoder.py` is a base: `_base_ = ["encoder.py"]` in your own configuration gives it the network with its weights, and
`model.data_preprocessor` with mean and deviation{pipeline}. Note that OpenMMLab only logs keys that do not fit. {how}
"""
TRAINED = """
`{file}` trains {what} on this encoder: `mim train {package} {file}`. {neck} The last lines build it. `receipt.json`
says under `reached` how far they ran: {library} needs mmcv with its compiled operators, and mmcv-lite has none.
"""
WHAT = {
    "mmseg": {"what": "UPerNet on ADE20K", "package": "mmsegmentation"},
    "mmdet": {"what": "Mask R-CNN on COCO", "package": "mmdet"},
}
NECKS = {
    True: "mmseg's Feature2Pyramid makes the pyramid from the chosen blocks, as XCiT and BEiT do; it starts random.",
    False: "The backbone's own stages are the pyramid.",
}


def refuse_dense(subject: Subject, library: str) -> str:
    try:
        openmmlab_dense.backbone(subject, library)
    except (AssertionError, RuntimeError, StopIteration, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return f"{library}'s necks take a pyramid of four maps, or four maps to make one from, and {reason}"
    return ""


def write(subject: Subject, folder: Path, library: str) -> Written:
    """The target of a backbone with one output, or of a classifier."""
    found = openmmlab_native.native(subject)
    contract = (f"mmpretrain.{found.config['type']}", dict(found.config)) if found else None
    if found is None:
        found = through_timm(subject)
        contract = (
            f"mmpretrain.{found.config['type']}",
            {"architecture": subject.name, "model_args": subject.model_args},
        )
    pipeline = ", and `test_pipeline` with the resize and the crop"
    return _written(found, subject, folder, library, contract=contract, notes=_notes(found, pipeline))


def write_dense(subject: Subject, folder: Path, library: str) -> Written:
    """The target of a backbone with four maps, and of the configuration that trains on them."""
    found, neck, left_random = openmmlab_dense.backbone(subject, library)
    kind = found.config["type"]
    if kind == TIMM_MAPS:
        arguments = {"architecture": subject.name, "model_args": subject.model_args}
        contract = (f"{kind} with maps", {**arguments, "out_indices": list(found.config["out_indices"])})
    else:
        own = openmmlab_native.native(subject)
        assert own is not None  # `backbone` took it
        contract = (f"mmpretrain.{own.config['type']}", dict(own.config))
    write_text(folder / FILES[library], training_config(library, neck, _imports(found, subject)))
    notes = _notes(found, "") + TRAINED.format(
        file=FILES[library], library=library, neck=NECKS[bool(neck.rescales)], **WHAT[library]
    )
    written = _written(found, subject, folder, library, contract=contract, notes=notes, left_random=left_random)
    written.expected["strides"] = torch.tensor([4, 8, 16, 32])
    stated = {"channels": list(neck.channels), "rescales": list(neck.rescales), "crop": neck.crop}
    written.details |= {"neck": stated}
    return written


def _written(found: Native, subject: Subject, folder: Path, library: str, **more: Any) -> Written:
    state = {PREFIX + key: value for key, value in found.tensors.items()}
    torch.save({"state_dict": state, "meta": {}}, folder / "encoder.pth")
    write_text(folder / "encoder.py", configuration(found, subject, library))
    kind = found.config["type"]
    last = "pooled" if kind == "TimmClassifier" else "last"
    libraries = dict.fromkeys(["mmpretrain" if kind == TIMM_MAPS else library, *_scope(found)])
    return Written(
        {"maps": found.maps} if len(found.maps) > 1 else {last: found.maps[0]},
        (*libraries, *timm_folder.ours(subject)),
        found.tensors,
        "encoder.pth",
        file_prefix=PREFIX,
        details={"class": kind},
        **more,
    )


def _scope(found: Native) -> list[str]:
    """["mmpretrain"] where the class is looked up in another library than the one that builds it."""
    return found.config["type"].split(".")[:-1]


def _imports(found: Native, subject: Subject) -> list[str]:
    """Modules that a configuration must import, so that its names are known."""
    return [f"{name}.models" for name in _scope(found)] + (["a2mim"] if subject.ours else [])


def _notes(found: Native, pipeline: str) -> str:
    kind = found.config["type"].split(".")[-1]
    return NOTES.format(pipeline=pipeline, how=f"The class is {kind}{', of mmpretrain' if _scope(found) else ''}.")


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


def configuration(found: Native, subject: Subject, library: str) -> str:
    """The text of encoder.py."""
    facts = subject.preprocessing
    scale = {key: [round(255 * v, 4) for v in values] for key, values in (("mean", facts.mean), ("std", facts.std))}
    swap = {"to_rgb" if library == "mmpretrain" else "bgr_to_rgb": len(scale["mean"]) == 3}
    kind = {"mmpretrain": {}, "mmdet": {"type": "DetDataPreprocessor"}, "mmseg": {"type": "SegDataPreProcessor"}}
    checkpoint = {"type": "Pretrained", "checkpoint": "{{ fileDirname }}/encoder.pth", "prefix": PREFIX}
    network = {**found.config, "init_cfg": checkpoint}
    if network["type"] != "TimmClassifier":
        network = {"backbone": network}
    parts: dict[str, Any] = {"model": {"data_preprocessor": {**kind[library], **scale, **swap}, **network}}
    if imports := _imports(found, subject):
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


def lines(library: str, facts: Facts) -> str:
    training = "" if facts.neck is None else TRAINING.format(library=library, file=FILES[library]) + STEPS[library]
    builder = "mmpretrain" if facts.timm_maps else library
    use = CLASSIFIER if facts.classifier else BACKBONE
    return CODE.format(library=builder, size=facts.size, training=training, **use)


def texts(library: str, facts: Facts) -> dict[str, str]:
    """The configuration that trains, where the facts have a neck."""
    if facts.neck is None:
        return {}
    imports = ["mmpretrain.models"] if facts.scoped else []
    imports += ["a2mim"] if facts.import_a2mim else []
    return {FILES[library]: training_config(library, facts.neck, imports)}


def row(library: str, write: Callable[..., Written], refuse: Callable[[Subject], str]) -> Target:
    return Target(library, partial(write, library=library), partial(lines, library), refuse, partial(texts, library))


MMPRETRAIN = row("mmpretrain", write, lambda subject: "")
MMDET = row("mmdet", write_dense, partial(refuse_dense, library="mmdet"))
MMSEG = row("mmseg", write_dense, partial(refuse_dense, library="mmseg"))

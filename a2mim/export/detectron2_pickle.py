"""detectron2: a pickle of arrays by its own keys, and the model's YAML, without which it would compute something else.

detectron2's defaults are those of weights by MSRA: stride in the 1×1 convolution, BGR, deviations of 1 and frozen
statistics. It loads what fits and only logs the rest. It is not in the package index: what is written is read back and
held against its documented keys; where it is installed, it is loaded.
"""

import itertools
import pickle
import re
from pathlib import Path

from a2mim.export.contracts import RESNETS
from a2mim.export.target import Facts, Subject, Target, Written
from a2mim.export.torchvision_file import plain_resnet_only
from a2mim.files import write_text

# of a timm key, in this order
MAP = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
)
YAML = """\
# detectron2: cfg.merge_from_file("backbone.yaml"); WEIGHTS is relative to the working directory
MODEL:
  WEIGHTS: encoder.pkl
  PIXEL_MEAN: [{mean}]
  PIXEL_STD: [{std}]
  BACKBONE:
    FREEZE_AT: 0
  RESNETS:
    DEPTH: {depth}
    NUM_GROUPS: {groups}
    WIDTH_PER_GROUP: {width}
    RES2_OUT_CHANNELS: {out}
    STRIDE_IN_1X1: False
    NORM: BN  # or SyncBN on several GPUs
INPUT:
  FORMAT: RGB
"""
CODE = """\
import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from detectron2.layers import ShapeSpec

images = torch.from_numpy(np.load("reference.npz")["images"])  # yours: normalised, float32 (B, {size})
cfg = get_cfg()
cfg.merge_from_file("backbone.yaml")
cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
model = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
DetectionCheckpointer(model).load("encoder.pkl")
with torch.no_grad():
    unpooled = model(images)["res5"]  # (B, {width}, a 32nd of the height, of the width)
"""
NOTES = """\
`backbone.yaml` holds what has to be said to detectron2 besides the file: its defaults (BGR, stride in the first 1×1
convolution, statistics of MSRA's weights) are wrong for these weights, without an error. `merge_from_file` it into the
configuration of a detector.
"""


def refuse(subject: Subject) -> str:
    if subject.name not in RESNETS:
        return f"detectron2's loader knows ResNets; those that go are {', '.join(RESNETS)}"
    return plain_resnet_only(subject, "detectron2's")


def rename(key: str) -> str:
    """detectron2's key of a timm one."""
    for pattern, replacement in MAP:
        key = re.sub(pattern, replacement, key)
    return key


def write(subject: Subject, folder: Path) -> Written:
    tensors = {rename(key): value for key, value in subject.tensors.items()}
    content = {
        "model": {key: value.numpy() for key, value in tensors.items()},
        "__author__": "a2mim",
        "matching_heuristics": True,
    }
    (folder / "encoder.pkl").write_bytes(pickle.dumps(content, protocol=4))
    for name, text in texts(Facts(subject.name, subject.preprocessing)).items():
        write_text(folder / name, text)
    return Written(
        {"unpooled": subject.outputs["unpooled"]},
        ("detectron2",),
        tensors,
        "encoder.pkl",
        contract=("detectron2", {"name": subject.name}),
        notes=NOTES,
    )


def texts(facts: Facts) -> dict[str, str]:
    _, bottleneck, groups, group_width = RESNETS[facts.architecture]
    pixels = facts.preprocessing
    mean, std = (", ".join(f"{255 * v:.6g}" for v in values) for values in (pixels.mean, pixels.std))
    depth = "".join(itertools.takewhile(str.isdigit, facts.architecture.lstrip("abcdefghijklmnopqrstuvwxyz_")))
    out = 256 if bottleneck else 64
    text = YAML.format(mean=mean, std=std, depth=depth, groups=groups, width=group_width, out=out)
    return {"backbone.yaml": text}


def lines(facts: Facts) -> str:
    return CODE.format(size=facts.size, width=facts.width)


TARGET = Target("detectron2", write, lines, refuse, texts)

"""torchvision: a state dictionary of its own ResNets, whose keys are timm's; loading it is strict."""

from pathlib import Path

import torch

from a2mim.export.contracts import RESNETS
from a2mim.export.target import Facts, Subject, Target, Written
from a2mim.export.timm_folder import CROP_PCT

CODE = """\
import numpy as np
import torch
import torchvision
from torchvision import transforms

images = torch.from_numpy(np.load("reference.npz")["images"])  # yours: normalised, float32 (B, {size})
model = torchvision.models.{name}()
model.fc = torch.nn.Identity()  # a classifier of your own goes here, once the weights are loaded
model.load_state_dict(torch.load("{name}.pth"))  # strict
model.eval()
{cover}preprocess = transforms.Compose(
    [
        {resize},
        transforms.CenterCrop({crop}),
        transforms.ToTensor(),
        transforms.Normalize({mean}, {std}),
    ]
)
with torch.no_grad():
    pooled = model(images)  # (B, {width})
    unpooled = torch.nn.Sequential(*list(model.children())[:-2])(images)  # a 32nd of the height and width
"""
SQUARE = "transforms.Resize({}, transforms.InterpolationMode.{})"
COVER = """\
def cover(image):
    \"\"\"Resized until it just covers {height} x {width} pixels.\"\"\"
    scale = max({height} / image.height, {width} / image.width)
    sides = [round(image.height * scale), round(image.width * scale)]
    return transforms.functional.resize(image, sides, transforms.InterpolationMode.{interpolation})


"""
NOTES = """\
With a classifier in place before the weights are loaded, `strict=False` is needed: then see to it that the keys it
returns as missing are `fc.weight` and `fc.bias` and that none is unexpected.
"""


def refuse(subject: Subject) -> str:
    if subject.name not in RESNETS:
        return f"torchvision has no model with these keys; those that go are {', '.join(RESNETS)}"
    return plain_resnet_only(subject, "torchvision's own")


def plain_resnet_only(subject: Subject, whose: str, channels: bool = True) -> str:
    """Why this ResNet is not the one of that name elsewhere; "" where it is."""
    changed = {k: v for k, v in subject.model_args.items() if (k, v) not in (("global_pool", "avg"), ("in_chans", 3))}
    if not channels:
        changed.pop("in_chans", None)
    if changed:
        return f"it was built with {changed}, which {whose} {subject.name} does not have; export it to timm"
    return ""


def write(subject: Subject, folder: Path) -> Written:
    torch.save(subject.tensors, folder / f"{subject.name}.pth")
    return Written(
        subject.outputs,
        ("torchvision",),
        subject.tensors,
        f"{subject.name}.pth",
        contract=("torchvision", {"name": subject.name}),
        notes=NOTES,
    )


def lines(facts: Facts) -> str:
    pixels = facts.preprocessing
    height, width = pixels.img_size
    tall, wide = (round(side / CROP_PCT) for side in (height, width))
    interpolation, square = pixels.interpolation.upper(), height == width
    return CODE.format(
        name=facts.architecture,
        size=facts.size,
        cover="" if square else COVER.format(height=tall, width=wide, interpolation=interpolation),
        resize=SQUARE.format(tall, interpolation) if square else "transforms.Lambda(cover)",
        crop=(height, width),
        mean=list(pixels.mean),
        std=list(pixels.std),
        width=facts.width,
    )


TARGET = Target("torchvision", write, lines, refuse)

"""ultralytics: a YAML of its own layers and a .pt that `YOLO("encoder.yaml").load("encoder.pt")` takes.

Nothing of ultralytics (AGPL) is imported: the .pt holds a tree of plain torch modules, of which its loader only uses
the state dictionary. One habit of it has to be undone, or it would compute something else in silence: it feeds pixels
in 0..1 without mean and deviation, so the first layer is a BatchNorm that is exactly that normalisation.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from a2mim.export.contracts import RESNETS, ULTRALYTICS_CHILDREN
from a2mim.export.target import Facts, Subject, Target, Written
from a2mim.export.torchvision_file import plain_resnet_only
from a2mim.files import write_text
from a2mim.pixels import Preprocessing

EPS = 1e-5  # of torch's BatchNorm2d, which its classification models leave as it is
NORMALIZE, ENCODER, HEAD = "model.0", "model.1.m", "model.2"
NEW = (
    *(f"{HEAD}.conv.{key}" for key in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")),
    *(f"{HEAD}.{key}" for key in ("conv.bn.num_batches_tracked", "linear.weight", "linear.bias")),
)
YAML = """\
# {name} for ultralytics; nc: the number of your classes
nc: 1000

backbone:
  - [-1, 1, nn.BatchNorm2d, []]  # pixels in 0..1 -> mean and deviation of pre-training
  - [-1, 1, TorchVision, [{width}, {name}, None, True, 2]]

head:
  - [-1, 1, Classify, [nc]]
"""
CODE = """\
import numpy as np
import torch
from ultralytics import YOLO

images = torch.from_numpy(np.load("reference.npz")["images"])  # normalised, float32 (B, {size})
mean, std = (torch.tensor(values).view(-1, 1, 1) for values in ({mean}, {std}))
yolo = YOLO("encoder.yaml").load("encoder.pt")  # then yolo.train(data=…, imgsz={side})
model = yolo.model.eval()
with torch.no_grad():
    unpooled = model.model[:2](images * std + mean)  # ultralytics feeds pixels in 0..1: (B, {width}, a 32nd, a 32nd)
"""
NOTES = """\
The classifier is new and random. Use `YOLO("encoder.yaml").load("encoder.pt")` as above, or
`yolo classify train model=encoder.yaml pretrained=encoder.pt data=…`: weights given to a YOLO object by
`load_state_dict` are thrown away when it trains, and keys that do not fit are passed over in silence. Mean and
deviation are inside the network, as its first layer; leave ultralytics' own as they are. It is for classification:
ultralytics' detection models set another eps in every BatchNorm.
"""


def refuse(subject: Subject) -> str:
    if subject.name not in RESNETS:
        return f"ultralytics builds from its own layers and torchvision's; those that go are {', '.join(RESNETS)}"
    return plain_resnet_only(subject, "torchvision's own")


def write(subject: Subject, folder: Path) -> Written:
    tensors = normalization(subject.preprocessing) | encoder(subject)
    torch.save({"model": tree(tensors)}, folder / "encoder.pt")
    for name, text in texts(Facts(subject.name, subject.preprocessing, subject.model.num_features)).items():
        write_text(folder / name, text)
    return Written(
        {"unpooled": subject.outputs["unpooled"]},
        ("ultralytics",),
        tensors,
        "encoder.pt",
        left_random=NEW,
        contract=("ultralytics", {"name": subject.name}),
        notes=NOTES,
    )


def normalization(preprocessing: Preprocessing) -> dict[str, Tensor]:
    """A BatchNorm that computes (x - mean) / std."""
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    tensors = {
        "weight": (std.square() + EPS).sqrt() / std,
        "bias": torch.zeros_like(mean),
        "running_mean": mean,
        "running_var": std.square(),
        "num_batches_tracked": torch.tensor(0),
    }
    return {f"{NORMALIZE}.{key}": value for key, value in tensors.items()}


def encoder(subject: Subject) -> dict[str, Tensor]:
    """The ResNet by ultralytics' keys: torchvision's children by number."""
    parts = ((key.split(".", 1), value) for key, value in subject.tensors.items())
    return {f"{ENCODER}.{ULTRALYTICS_CHILDREN[child]}.{rest}": value for (child, rest), value in parts}


def tree(tensors: dict[str, Tensor]) -> nn.Module:
    """Modules that do nothing but hold these tensors under these keys."""
    root = nn.Module()
    for key, value in tensors.items():
        *path, last = key.split(".")
        module: nn.Module = root
        for i, part in enumerate(path):
            if part not in module._modules:  # "model" is indexed by ultralytics' loader
                module.add_module(part, nn.Sequential() if i == 0 else nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(last, value)
    return root


def texts(facts: Facts) -> dict[str, str]:
    return {"encoder.yaml": YAML.format(name=facts.architecture, width=facts.width)}


def lines(facts: Facts) -> str:
    pixels = facts.preprocessing
    mean, std, side = list(pixels.mean), list(pixels.std), max(pixels.img_size)
    return CODE.format(size=facts.size, mean=mean, std=std, side=side, width=facts.width)


TARGET = Target("ultralytics", write, lines, refuse, texts)

"""A network of the user's own: its weights under its own keys, loaded by its own class; nothing of ours is needed."""

from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from a2mim.evaluation.features import frozen
from a2mim.export import graphs
from a2mim.export.target import Facts, Subject, Target, Written
from a2mim.files import write_json
from a2mim.wiring.layout import leaves
from a2mim.wiring.networks import OwnNetwork

CODE = """\
import numpy as np
import torch
from safetensors.torch import load_file
from {module} import {name}

images = torch.from_numpy(np.load("reference.npz")["images"])  # yours: normalised, float32 (B, {size})
model = {name}({arguments}).eval()
model.load_state_dict(load_file("model.safetensors"))  # strict
with torch.no_grad():
    output = model(images)
"""
NOTES = """\
What lies behind the last feature map, such as a classifier, was never trained and is as it was made. In a2mim, give
`{architecture}:FOLDER` to any command: a folder alone may not choose code to import. The features are then the mean
over the last map.
"""


def write(subject: Subject, folder: Path) -> Written:
    network = subject.model.network
    architecture, size = subject.name, subject.input_size
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": subject.model.num_features,
        "model_args": dict(subject.model_args),
        "pretrained_cfg": {"input_size": size, "num_classes": 0}
        | {
            "mean": list(subject.preprocessing.mean),
            "std": list(subject.preprocessing.std),
            "interpolation": subject.preprocessing.interpolation,
        },
    }
    write_json(folder / "config.json", config)
    (folder / "model.safetensors").write_bytes(save(subject.tensors, metadata={"format": "pt"}))
    packages = ("safetensors", architecture.partition(".")[0])
    expected = {"output": _output(network, subject.images)}
    return Written(
        expected, packages, subject.tensors, "model.safetensors", notes=NOTES.format(architecture=architecture)
    )


def _output(network: nn.Module, images: Tensor) -> Tensor | dict[str, Tensor]:
    """What the network itself returns, with its classifier if it has one; nests flattened to {"a.0": tensor}."""
    with frozen(network):
        found = {".".join(map(str, path)): tensor for path, tensor in leaves(network(images))}
    return found.get("", found)


def refuse(subject: Subject, target: Target) -> str:
    """Why this target cannot take this encoder, or "": the user's own goes to `network`, which takes no other, and to
    the graphs, which hold all that is computed.
    """
    if isinstance(subject.model, OwnNetwork) and target.name not in graphs.FORMATS:
        return "" if target is TARGET else f"timm does not build it, choose network, {', '.join(graphs.FORMATS)}"
    return "it is timm's, choose timm" if target is TARGET else target.refuse(subject)


def lines(facts: Facts) -> str:
    module, _, name = facts.architecture.rpartition(".")
    arguments = ", ".join(f"{key}={value!r}" for key, value in facts.arguments.items())
    if facts.configured:
        arguments = f"{name}.config_class({arguments})"
    return CODE.format(module=module, name=name, arguments=arguments, size=facts.size)


TARGET = Target("network", write, lines)

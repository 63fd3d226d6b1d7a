"""ONNX: a graph that onnxruntime computes, with the preprocessing in its metadata."""

import importlib.util
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from a2mim.export import graphs
from a2mim.export.target import Facts, Subject, Target, Written

CODE = """\
import json

import numpy as np
import onnxruntime

images = np.load("reference.npz")["images"]  # yours: normalised, float32 (B, {size})
session = onnxruntime.InferenceSession("encoder.onnx", providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(names, {{"input": images}})))
embedding = outputs["embedding"]  # (B, {width})
one = session.run(["embedding"], {{"input": images[:1]}})[0]  # B is free
{wide}preprocessing = {{key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}}
"""
WIDE = """\
wide = session.run(["embedding"], {"input": np.concatenate([images, images], axis=3)})[0]  # H and W are free
"""
NOTES = (
    "The metadata of the file holds `mean`, `std`, `img_size` ([H, W]), `interpolation` and `channels`, each as JSON.\n"
)
AXES = ("batch", "channels", "height", "width")
NEEDED = ("onnx", "onnxscript")


def write(subject: Subject, folder: Path) -> Written:
    graph, program, free_size = graphs.capture(subject)
    told = graphs.details(graph, subject, free_size)
    opset = save(program, list(told["outputs"]), graphs.preprocessing_json(subject), folder / "encoder.onnx")
    return Written(
        graphs.expectations(graph, subject, free_size),
        ("onnxruntime",),
        notes=graphs.notes(told["outputs"], free_size, NOTES),
        details={**told, "opset": opset},
    )


def save(program: ExportedProgram, outputs: list[str], preprocessing: str, path: Path) -> int:
    """Writes a graph of one input as ONNX, and returns its opset.

    Args:
        outputs: their names.
        preprocessing: JSON, for the metadata.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        made = torch.onnx.export(program, dynamo=True, input_names=["input"], output_names=outputs, verbose=False)
    assert made is not None  # as it is with dynamo=True
    _tidy(made.model, preprocessing)
    made.save(str(path))
    return made.model.opset_imports[""]


def compute(path: Path, images: Tensor) -> list[Tensor]:
    """What onnxruntime makes of images, in the order of the graph's outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(value) for value in session.run(None, {"input": images.numpy()})]


def refuse(subject: Subject) -> str:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"it is written with {' and '.join(missing)}: pip install 'a2mim[onnx]'" if missing else ""


def _tidy(model, preprocessing: str) -> None:
    """Names the axes, and puts the preprocessing where the exporter leaves the file names of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update({key: json.dumps(value) for key, value in json.loads(preprocessing).items()})
    model.graph.metadata_props.clear()
    names = {str(axis): name for axis, name in zip(model.graph.inputs[0].shape, AXES, strict=True)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        for i, axis in enumerate(value.shape):
            if not isinstance(axis, int) and str(axis) in names:
                value.shape[i] = names[str(axis)]
        value.metadata_props.clear()


def lines(facts: Facts) -> str:
    return CODE.format(size=facts.size, width=facts.width, wide=WIDE if facts.free_size else "")


TARGET = Target("onnx", write, lines, refuse)

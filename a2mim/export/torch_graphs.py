"""torch-export and torchscript: graphs that torch alone computes, with the preprocessing inside and beside them."""

import warnings
from functools import partial
from pathlib import Path

import torch

from a2mim.evaluation.features import frozen
from a2mim.export import graphs
from a2mim.export.target import Facts, Subject, Target, Written
from a2mim.files import write_text

FILE = "preprocessing.json"
EXPORT_CODE = """\
import numpy as np
import torch

images = torch.from_numpy(np.load("reference.npz")["images"])  # yours: normalised, float32 (B, {size})
model = torch.export.load("encoder.pt2").module()
with torch.no_grad():
    outputs = model(images)
    embedding = outputs["embedding"]  # (B, {width})
    one = model(images[:1])["embedding"]  # B is free
{wide}"""
SCRIPT_CODE = EXPORT_CODE.replace('torch.export.load("encoder.pt2").module()', 'torch.jit.load("encoder.ts")')
WIDE = """\
    wide = model(torch.cat([images, images], dim=3))["embedding"]  # H and W are free
"""
NOTES = (
    f"`{FILE}`, which is also inside the file, says how images are made ready: `mean`, `std`, `img_size` ([H, W]) …\n"
)
EXPORT_DEVICE = """
The graph is written for the CPU, and `.to(…)` alone does not move it to another device. These lines do, to a GPU say:
`from torch.export.passes import move_to_device_pass`, then
`model = move_to_device_pass(torch.export.load("encoder.pt2"), "cuda").module()`. Only the CPU was proven.
"""
SCRIPT_DEVICE = """
The graph is written for the CPU. `torch.jit.load("encoder.ts", map_location="cuda")` moves the weights to a GPU; what a
trace made on the CPU, such as tables of positions, may stay there. Only the CPU was proven.
"""


def write_export(subject: Subject, folder: Path) -> Written:
    graph, program, free_size = graphs.capture(subject)
    torch.export.save(program, folder / "encoder.pt2", extra_files={FILE: graphs.preprocessing_json(subject)})
    return _written(graph, subject, free_size, folder, EXPORT_DEVICE)


def write_script(subject: Subject, folder: Path) -> Written:
    """A trace: only what it computes for another size decides whether the size is free."""
    graph = graphs.Graph(subject.model, subject.images).eval()
    with frozen(graph), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that it fixes, and about its age
        script = torch.jit.trace(graph, (subject.images,), strict=False, check_trace=False)
        free_size = graphs.accepts(graph, subject) and _computes_wide(script, graph, subject)
        torch.jit.save(script, folder / "encoder.ts", _extra_files={FILE: graphs.preprocessing_json(subject)})
    return _written(graph, subject, free_size, folder, SCRIPT_DEVICE)


def _computes_wide(script, graph: graphs.Graph, subject: Subject) -> bool:
    try:
        return graphs.is_same(script, graph, graphs.wide(subject.images))
    except RuntimeError:  # a size that the trace has fixed
        return False


def _written(graph: graphs.Graph, subject: Subject, free_size: bool, folder: Path, device: str) -> Written:
    write_text(folder / FILE, graphs.preprocessing_json(subject) + "\n")
    told = graphs.details(graph, subject, free_size)
    return Written(
        graphs.expectations(graph, subject, free_size),
        notes=graphs.notes(told["outputs"], free_size, NOTES + device),
        details={**told, "devices": ["cpu"]},
    )


def fill(code: str, facts: Facts) -> str:
    return code.format(size=facts.size, width=facts.width, wide=WIDE if facts.free_size else "")


EXPORT = Target("torch-export", write_export, partial(fill, EXPORT_CODE))
SCRIPT = Target("torchscript", write_script, partial(fill, SCRIPT_CODE))

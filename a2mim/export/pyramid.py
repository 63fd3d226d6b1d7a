"""pyramid: one graph from images to four maps of strides 4, 8, 16 and 32, for detectors and segmenters anywhere.

Invariant: before the folder is handed over, the graph's maps were compared with maps that hooks on the network's
modules took, by layouts that were measured and not assumed.
"""

import importlib.util
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from a2mim.evaluation.features import frozen
from a2mim.export import graphs, onnx_graph
from a2mim.export.levels import STRIDES, Level, choose_levels, read_by_hand
from a2mim.export.receipt import TOLERANCE
from a2mim.export.target import ExportError, Facts, Subject, Target, Written
from a2mim.files import write_text
from a2mim.wiring.layout import Layout, leaves

FILE = "preprocessing.json"
COARSEST = STRIDES[-1]
CODE = """\
import numpy as np
import torch

images = torch.from_numpy(np.load("reference.npz")["images"])  # yours: normalised, float32 (B, {size})
model = torch.export.load("pyramid.pt2").module()
with torch.no_grad():
    maps = model(images)  # {{"stride4": (B, D, H / 4, W / 4), "stride8": …, "stride16": …, "stride32": …}}
    one = model(images[:1])  # B is free
{wide}{onnx}"""
WIDE = """\
    wide = model(torch.cat([images, images], dim=3))  # H and W are free, in multiples of 32 pixels
"""
ONNX = """\

import onnxruntime

session = onnxruntime.InferenceSession("pyramid.onnx", providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
onnx_maps = dict(zip(names, session.run(names, {{"input": images.numpy()}})))
onnx_one = dict(zip(names, session.run(names, {{"input": images[:1].numpy()}})))
{wide}"""
ONNX_WIDE = """\
onnx_wide = dict(zip(names, session.run(names, {"input": torch.cat([images, images], dim=3).numpy()})))
"""
ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")
NOTES = """\
Four maps, at the size that the graph was exported for:

{listed}

{resampled}No map passes a last norm. {free}`{file}`, which is also inside `pyramid.pt2`, says how images are made
ready. {onnx}

The graphs are written for the CPU. `from torch.export.passes import move_to_device_pass`, then
`move_to_device_pass(torch.export.load("pyramid.pt2"), "cuda").module()` moves the first one. Only the CPU was proven.
"""
RESAMPLED = """\
The network has no map of some of these strides of its own. Those levels are resampled without parameters, by bilinear
interpolation to a finer grid and by max pooling to a coarser one. So the graph has no random layer: train a
convolution behind each level, as any feature pyramid network does.

"""


class Pyramid(nn.Module):
    """A network as a function from images to its four levels.

    Args:
        model: a network with `forward_features`.
        levels: of `choose_levels`.
    """

    def __init__(self, model: nn.Module, levels: list[Level]):
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> {"stride4": (B, D, H / 4, W / 4), …}."""
        maps: dict[str, Tensor] = {}

        def note(level: Level, module, inputs, output):
            features = as_map(dict(leaves(output))[level.path], level.layout, level.own_stride, images)
            maps[level.name] = level.resample(features, *images.shape[2:])

        modules = [self.model.get_submodule(level.module) for level in self.levels]
        handles = [
            module.register_forward_hook(partial(note, level))
            for module, level in zip(modules, self.levels, strict=True)
        ]
        try:
            self.model.forward_features(images)  # type: ignore[operator]
        finally:
            for handle in handles:
                handle.remove()
        return {level.name: maps[level.name] for level in self.levels}


def as_map(tensor: Tensor, layout: Layout, stride: float, images: Tensor) -> Tensor:
    """A tensor of this layout -> (B, D, h, w), for any image size where cells lie in raster order."""
    if not layout.raster or (len(layout.shape) == 1 and stride != int(stride)):
        return layout.to_map(tensor)
    if len(layout.shape) == 2:
        return tensor.movedim(layout.channel, 1)
    rows, columns = (-(-side // int(stride)) for side in images.shape[2:])
    tokens = tensor.movedim(layout.channel, 1)[:, :, layout.first : layout.first + rows * columns]
    return tokens.reshape(tokens.shape[0], tokens.shape[1], rows, columns)


def write(subject: Subject, folder: Path) -> Written:
    levels = subject.levels
    graph = Pyramid(subject.model, levels).eval()
    expected = read_by_hand(subject.model, levels, subject.images)
    with frozen(graph):
        if not is_same(graph(subject.images), expected):
            raise ExportError(f"the pyramid of {subject.name} differs from the maps of its modules.")
    program, wide = capture(graph, subject)
    torch.export.save(program, folder / "pyramid.pt2", extra_files={FILE: graphs.preprocessing_json(subject)})
    write_text(folder / FILE, graphs.preprocessing_json(subject) + "\n")
    results = {"maps": expected, "one": {name: value[:1] for name, value in expected.items()}}
    results |= {"wide": wide} if wide else {}
    told, problem = _write_onnx(program, subject, expected, folder / "pyramid.onnx")
    if not problem:
        results |= {f"onnx_{name}": value for name, value in results.items()}
    return Written(
        results,
        () if problem else ("onnxruntime",),
        notes=_notes(expected, levels, bool(wide), problem),
        details={
            "dynamic": ["batch", *(["height", "width"] if wide else [])],
            "formats": ["torch-export", *([] if problem else ["onnx"])],
            **told,
            "outputs": {name: ["batch", *value.shape[1:]] for name, value in expected.items()},
            "levels": [_row(level) for level in levels],
        },
    )


def capture(graph: Pyramid, subject: Subject) -> tuple[ExportedProgram, dict[str, Tensor]]:
    """(the graph with a free batch, the maps of wide images where height and width are free too, else {})."""
    wide = graphs.wide(subject.images)
    whole = all(side % COARSEST == 0 for side in subject.images.shape[2:])
    expected = _by_hand(graph, wide) if whole else {}
    with frozen(graph):
        for sizes in _free_sizes() if expected else ():
            try:
                program = trace(graph, subject.images, sizes)
                if is_same(program.module()(wide), expected):
                    return program, expected
            except Exception:  # a network may compute sizes in ways that no graph can: then the size is fixed
                continue
        return trace(graph, subject.images, {}), {}


def trace(graph: Pyramid, images: Tensor, sizes: dict) -> ExportedProgram:
    """`graphs.trace`, without what lies behind the last map that is read."""
    program = graphs.trace(graph, images, sizes)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _free_sizes() -> list[dict]:
    """Ways to say that height and width are free: multiples of the coarsest cell, by name; else what torch finds."""
    return [{2: COARSEST * Dim("rows"), 3: COARSEST * Dim("columns")}, {2: Dim.AUTO, 3: Dim.AUTO}]


def _by_hand(graph: Pyramid, images: Tensor) -> dict[str, Tensor]:
    """The pyramid of images of another size, chosen and measured anew; {} where the network does not take them, or
    answers with other maps.
    """
    try:
        levels = choose_levels(graph.model, images)
        found = read_by_hand(graph.model, levels, images)
    except Exception:  # every family refuses another size in its own way
        return {}
    return found if [_row(level) for level in levels] == [_row(level) for level in graph.levels] else {}


def is_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether every map differs by at most the proof's tolerance."""
    return all(
        found[name].shape == value.shape and bool((found[name] - value).abs().max() <= TOLERANCE * value.abs().max())
        for name, value in expected.items()
    )


def _write_onnx(program: ExportedProgram, subject: Subject, expected: dict, path: Path) -> tuple[dict, str]:
    """(what the receipt tells, why there is no ONNX file or "")."""
    missing = [name for name in ONNX_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        return {}, f"{' and '.join(missing)} is not installed: pip install 'a2mim[onnx]'"
    try:
        opset = onnx_graph.save(program, list(expected), graphs.preprocessing_json(subject), path)
        found = onnx_graph.compute(path, subject.images)
        if not is_same(dict(zip(expected, found, strict=True)), expected):
            raise ValueError(f"onnxruntime's maps differ by more than {TOLERANCE:.0e} of the largest feature")
    except Exception as error:  # an operator that the exporter or the runtime does not know
        path.unlink(missing_ok=True)
        return {}, (str(error).strip() or type(error).__name__).splitlines()[0]
    return {"opset": opset}, ""


def _row(level: Level) -> dict:
    """A level as the receipt tells it."""
    return {
        "output": level.name,
        "module": level.module + "".join(f"[{part}]" for part in level.path),
        "own_stride": round(level.own_stride, 3),
        "channels": level.channels,
        "resampling": level.resampling,
    }


def _notes(maps: dict[str, Tensor], levels: list[Level], free_size: bool, problem: str) -> str:
    shapes = {level: ", ".join(["B", *map(str, maps[level.name].shape[1:])]) for level in levels}
    listed = "\n".join(
        f"- `{level.name}`: ({shape}), the output of `{level.module}`"
        + ("" if level.resampling == "none" else f" at stride {level.own_stride:.4g}, {level.resampling}")
        for level, shape in shapes.items()
    )
    free = "The number of images is free" + (
        f"; so are height and width, in multiples of {COARSEST} pixels. " if free_size else ". "
    )
    onnx = (
        f"`pyramid.onnx` was not written: {problem}." if problem else "`pyramid.onnx` holds the same in its metadata."
    )
    resampled = RESAMPLED if any(level.resampling != "none" for level in levels) else ""
    return NOTES.format(listed=listed, resampled=resampled, free=free, file=FILE, onnx=onnx)


def refuse(subject: Subject) -> str:
    try:
        _ = subject.levels
    except (AssertionError, RuntimeError, StopIteration, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return f"a pyramid needs maps of the image, and there are none to read ({reason})"
    return ""


def lines(facts: Facts) -> str:
    onnx = ONNX.format(wide=ONNX_WIDE if facts.free_size else "") if facts.onnx else ""
    return CODE.format(size=facts.size, wide=WIDE if facts.free_size else "", onnx=onnx)


TARGET = Target("pyramid", write, lines, refuse)

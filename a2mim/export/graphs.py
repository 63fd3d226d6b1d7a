"""The common part of the graph formats: one module from images to named outputs, and the free axes of its input.

Invariant: a graph computes without timm and without a2mim, whatever the architecture.
"""

import json
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from a2mim.evaluation.features import frozen
from a2mim.export.target import Subject

FORMATS = ("onnx", "torch-export", "torchscript", "pyramid")
QUARTERS = 4  # maps that an isotropic network offers as stages: its depth's quarters


class Graph(nn.Module):
    """The encoder with every output that users need.

    Args:
        model: a timm model with num_classes=0.
        images: (B, C, H, W), on which it is seen which outputs the model can give.
    """

    model: Any  # a timm model

    def __init__(self, model: Any, images: Tensor):
        super().__init__()
        self.model, self.indices = model, _stage_indices(model)
        if self.indices:
            with frozen(model):
                final, _ = self._intermediates(images)
                expected = model.forward_features(images)
            if not (isinstance(expected, Tensor) and final.shape == expected.shape and torch.equal(final, expected)):
                self.indices = []

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> "embedding" (B, D); "map" (B, D, h, w), the last, after its norm; "stage1", … before any."""
        features, stages = self._intermediates(images) if self.indices else (self.model.forward_features(images), [])
        outputs = {"embedding": self.model.forward_head(features)}
        if isinstance(features, Tensor) and (features.ndim == 4 or stages):
            outputs["map"] = _as_map(self.model, features, stages)
        return outputs | {f"stage{i}": stage for i, stage in enumerate(stages, start=1)}

    def _intermediates(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.model.forward_intermediates(images, indices=self.indices, output_fmt="NCHW")


def _stage_indices(model: Any) -> list[int]:
    """Of timm's feature_info: every stage of a hierarchical network, four depths of an isotropic one, none without."""
    info = getattr(model, "feature_info", None)
    if not hasattr(model, "forward_intermediates") or not info:
        return []
    rows = info.info if hasattr(info, "info") else info
    if len({row["reduction"] for row in rows}) > 1 or len(rows) <= QUARTERS:
        return list(range(len(rows)))
    return [len(rows) * quarter // QUARTERS - 1 for quarter in range(1, QUARTERS + 1)]


def _as_map(model: nn.Module, features: Tensor, stages: list[Tensor]) -> Tensor:
    """(B, N, D), (B, D, h, w) or (B, h, w, D) -> (B, D, h, w), without class and register tokens."""
    if features.ndim == 4:
        nhwc = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return rearrange(features, "b h w d -> b d h w") if nhwc else features
    # XCiT adds its class token late and does not count it as a prefix token
    prefix = getattr(model, "num_prefix_tokens", int(getattr(model, "cls_token", None) is not None))
    return features[:, prefix:].transpose(1, 2).reshape(stages[-1].shape)


def capture(subject: Subject) -> tuple[Graph, ExportedProgram, bool]:
    """(the module, its graph with a free batch, whether height and width are free too)."""
    graph = Graph(subject.model, subject.images).eval()
    with frozen(graph):
        if accepts(graph, subject):
            try:
                program = trace(graph, subject.images, {2: Dim.AUTO, 3: Dim.AUTO})
                if is_same(program.module(), graph, wide(subject.images)):
                    return graph, program, True
            except Exception:  # a network may compute sizes in ways that no graph can: then the size is fixed
                pass
        return graph, trace(graph, subject.images, {}), False


def trace(graph: nn.Module, images: Tensor, sizes: dict) -> ExportedProgram:
    """torch.export, without the file names and lines of this machine that it notes at every node."""
    with torch.no_grad():
        program = torch.export.export(graph, (images,), dynamic_shapes={"images": {0: Dim("batch"), **sizes}})
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return program


def accepts(graph: nn.Module, subject: Subject) -> bool:
    """Whether the network itself takes images of another shape."""
    try:
        graph(wide(subject.images))
    except Exception:  # every family refuses another size in its own way
        return False
    return True


def is_same(found: nn.Module, graph: Graph, images: Tensor) -> bool:
    expected, given = graph(images), found(images)
    return all(
        given[name].shape == value.shape and torch.allclose(given[name], value, rtol=1e-4, atol=1e-5)
        for name, value in expected.items()
    )


def wide(images: Tensor) -> Tensor:
    """(B, C, H, 2W): each image beside itself."""
    return torch.cat([images, images], dim=3)


def expectations(graph: Graph, subject: Subject, free_size: bool) -> dict:
    """What the README's lines compute from the reference images: all outputs, then the embedding of one image alone,
    and of wide ones where the size is free.
    """
    with frozen(graph):
        outputs = graph(subject.images)
        expected = {"outputs": outputs, "one": graph(subject.images[:1])["embedding"]}
        if free_size:
            expected["wide"] = graph(wide(subject.images))["embedding"]
    return expected


def preprocessing_json(subject: Subject) -> str:
    """mean and std per channel of images in 0..1, img_size [H, W], interpolation, channels."""
    return json.dumps(subject.preprocessing.to_dict() | {"channels": subject.preprocessing.channels})


def details(graph: Graph, subject: Subject, free_size: bool) -> dict:
    """For the receipt: which axes are free, and what the outputs are."""
    with frozen(graph):
        shapes = {name: ["batch", *value.shape[1:]] for name, value in graph(subject.images).items()}
    return {"dynamic": ["batch", *(["height", "width"] if free_size else [])], "outputs": shapes}


def notes(shapes: dict, free_size: bool, extra: str) -> str:
    """Paragraphs for the README on outputs, free axes and preprocessing."""
    listed = "\n".join(f"- `{name}`: ({', '.join(map(str, ['B', *shape[1:]]))})" for name, shape in shapes.items())
    stages = "`stage1`, … are maps on the way, before any last norm. " if "stage1" in shapes else ""
    free = "The number of images is free" + (
        "; so are height and width, where the network's strides divide them.\n" if free_size else ".\n"
    )
    return f"Outputs, at the size it was exported for:\n\n{listed}\n\n{stages}{free}{extra}"

"""Records what happens in a model during one forward, on a throw-away copy.

Invariant: only a copy is traced. The model, its BatchNorm statistics and torch's random state do not change.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from a2mim.wiring.layout import Layout, guess_all, leaves
from a2mim.wiring.model_type import TimmModel


@dataclass(frozen=True)
class Call:
    """One run of one module. `depth` is the share of leaf modules with parameters that had run when it ended."""

    name: str
    depth: float
    guesses: dict[tuple, list[Layout]]  # path in the output -> layouts that the shape allows
    widths: dict[tuple, int]  # path in the output -> channels, for the likeliest layout
    nodes: dict[tuple, Any]  # path in the output -> the autograd node that made it


@dataclass(frozen=True)
class Trace:
    """The record of one forward.

    Attributes:
        calls: in order, the modules that run exactly once and return a map of the image. Recorded are modules that have
            parameters, that timm declares, or that the user named.
        output: of `forward_features`.
        tensors: the output tensors of each module.
        resized: names of the modules that receive the image after the model resized it (CrossViT's second patch
            embedding).
        counts: number of runs of each recorded module.
    """

    calls: list[Call]
    output: Any
    tensors: dict[str, dict[tuple, Tensor]]
    resized: list[str]
    counts: dict[str, int]


def trial_copy(model: nn.Module) -> nn.Module:
    """A copy whose constant parameters (LayerScale, …) are perturbed, so that zero initialisation hides no gradient.

    Dropout and drop path are off. BatchNorm normalises by the statistics of the batch and stores them.
    """
    trial = copy.deepcopy(model).eval().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    for parameter in trial.parameters():
        if not parameter.is_meta and (parameter == parameter.flatten()[0]).all():
            noise = torch.randn(parameter.shape, generator=generator, device="cpu")
            parameter.data.add_(noise.to(parameter), alpha=0.1)
    for module in trial.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 1.0
    return trial


def trace(
    model: TimmModel, images: Tensor, run: Callable[[Tensor], Any] | None = None, also: Sequence[str] = ()
) -> Trace:
    """Runs `forward_features`, or `run`, once with hooks; `images` (B, C, H, W) should require a gradient.

    Args:
        also: names of modules to record although they have no parameters (ResNet's maxpool).

    Raises:
        ValueError: the model does not accept images of this size.
    """
    finished, handles, resized = [], [], []
    counts: dict[str, int] = {}
    tensors: dict[str, dict[tuple, Tensor]] = {}
    seen: set[str] = set()
    leaf_calls = 0

    def watch(name: str, is_leaf: bool):
        def hook(module, inputs, output):
            nonlocal leaf_calls
            leaf_calls += is_leaf
            counts[name] = counts.get(name, 0) + 1
            tensors[name] = dict(leaves(output))
            # Read now: a later in-place operation gives the tensor another node.
            nodes = {path: t.grad_fn for path, t in tensors[name].items() if t.grad_fn is not None}
            finished.append((name, leaf_calls, guess_all(output, images, model), nodes))

        return hook

    def look_at_input(name: str):
        def hook(module, inputs):  # runs for the outermost module first
            node = _resized_image(inputs, images)
            if node is not None and node not in seen:
                seen.add(node)
                resized.append(name)

        return hook

    declared = {name for name, _ in feature_modules(model)}
    for name, module in model.named_modules():
        if name in declared or name in also or (name and any(True for _ in module.parameters())):
            is_leaf = not any(True for _ in module.children()) and any(True for _ in module.parameters())
            handles.append(module.register_forward_pre_hook(look_at_input(name)))
            handles.append(module.register_forward_hook(watch(name, is_leaf)))
    try:
        output = (run or model.forward_features)(images)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(refusal(images.shape[2:], error)) from error
    finally:
        for handle in handles:
            handle.remove()
    calls = []
    for name, done, guesses, nodes in finished:
        if guesses and counts[name] == 1:
            widths = {path: tensors[name][path].shape[found[0].channel] for path, found in guesses.items()}
            calls.append(Call(name, done / max(1, leaf_calls), guesses, widths, nodes))
    return Trace(calls, output, tensors, resized, counts)


def _resized_image(inputs: tuple, images: Tensor):
    """The autograd node of a module's input if the input is an interpolation of the images; else None."""
    given = inputs[0] if inputs else None
    if not isinstance(given, Tensor) or given.ndim != 4 or given.shape[1] != images.shape[1]:
        return None
    node = given.grad_fn
    if node is None or not node.name().startswith("Upsample"):
        return None
    return node if getattr(node.next_functions[0][0], "variable", None) is images else None


def refusal(img_size: Sequence[int], error: Exception) -> str:
    """The sentence for an image size that a model does not accept."""
    height, width = img_size
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return (
        f"the model does not accept images of {height} x {width} px ({reason}); leave img_size out for the model's own"
        " size, or see the sizes that `a2mim check-model` lists."
    )


def feature_modules(model: nn.Module) -> list[tuple[str, int]]:
    """(module name, stride in pixels) of the maps that timm declares; empty if it declares none."""
    info = getattr(model, "feature_info", None) or []
    return [(entry["module"], entry["reduction"]) for entry in getattr(info, "info", info) if entry.get("module")]

"""Which module's output takes the mask token, and where its cells are: traced and measured on a throw-away copy of the model.

Invariant: the model that is studied here is never trained or kept; nothing that happens here touches the real one.
"""

import copy
import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from a2mim.layout import Layout, cell_stride, guess_layouts, leaves, replace_leaves


@dataclass
class Call:
    """One run of one module: `depth` is the share of parametric leaf modules that had run when it ended."""

    name: str
    depth: float
    shapes: dict[tuple, tuple[int, ...]]  # path of each output tensor -> its shape
    layouts: dict[tuple, list[Layout]]  # path -> what the shape allows, likeliest first


def trial_copy(model: nn.Module) -> nn.Module:
    """A copy in which no gradient is zero by initialisation alone: constant parameters (LayerScale, residual gammas) get noise.

    Dropout and drop path are off; BatchNorm normalises by, and keeps, the statistics of the batch it sees.
    """
    trial = copy.deepcopy(model).eval().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    for parameter in trial.parameters():
        if not parameter.is_meta and (parameter == parameter.flatten()[0]).all():
            noise = torch.randn(parameter.shape, generator=generator, device="cpu").to(
                parameter.device, parameter.dtype
            )
            parameter.data.add_(noise, alpha=0.1)
    for module in trial.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 1.0
    return trial


def trace(model: nn.Module, images: Tensor) -> tuple[list[Call], Any]:
    """Runs `forward_features` once: the calls of all modules with parameters that run exactly once, in order, and the output."""
    finished, counts, handles = [], {}, []
    leaf_calls = 0

    def watch(name: str, is_leaf: bool):
        def hook(module, inputs, output):
            nonlocal leaf_calls
            leaf_calls += is_leaf
            counts[name] = counts.get(name, 0) + 1
            finished.append((name, leaf_calls, {path: tuple(t.shape) for path, t in leaves(output)}))

        return hook

    for name, module in model.named_modules():
        if name and any(True for _ in module.parameters()):
            is_leaf = not any(True for _ in module.children())
            handles.append(module.register_forward_hook(watch(name, is_leaf)))
    try:
        output = model.forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
    prefix = getattr(model, "num_prefix_tokens", 0)
    img_size = tuple(images.shape[-2:])
    calls = []
    for name, done, shapes in finished:
        layouts = {path: guess_layouts(shape, img_size, prefix) for path, shape in shapes.items()}
        layouts = {path: found for path, found in layouts.items() if found}
        if layouts and counts[name] == 1:
            calls.append(Call(name, done / max(1, leaf_calls), shapes, layouts))
    return calls, output


def feature_modules(model: nn.Module) -> list[tuple[str, int]]:
    """(module name, stride) of the maps that timm declares; empty where it declares none."""
    info = getattr(model, "feature_info", None) or []
    info = getattr(info, "info", info)
    return [(entry["module"], entry["reduction"]) for entry in info if entry.get("module")]


def choose_site(model: nn.Module, calls: list[Call], final_stride: float, max_stride: float, img_size) -> Call:
    """The module whose output takes the token, by rule.

    A hierarchical network gets it on the last map of half the final stride (the input of the last stage, as A²MIM's ResNet),
    an isotropic one nearest to half its depth. Maps coarser than the mask cell (`max_stride` pixels) are the last resort.
    """
    declared = feature_modules(model)
    by_name = {call.name: call for call in calls}
    candidates = [by_name[name] for name, _ in declared if name in by_name] or calls

    def stride(call: Call) -> float:
        strides = [reduction for _, reduction in declared]
        return max(cell_stride(img_size[0], found[0].grid[0], strides) for found in call.layouts.values())

    fine = [call for call in candidates if stride(call) <= max_stride] or candidates
    halves = [call for call in fine if 2 * stride(call) == final_stride and 0.25 <= call.depth <= 0.97]
    if halves:
        return halves[-1]
    return min(fine, key=lambda call: abs(call.depth - 0.5))


def find_site(model: nn.Module, calls: list[Call], name: str) -> Call:
    """The call of the module of that name, or ValueError with the nearest names."""
    by_name = {call.name: call for call in calls}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=4, cutoff=0.3) or [c.name for c in calls if "." not in c.name]
    known = name in dict(model.named_modules())
    why = "has no feature map that is computed once" if known else "is not a module of the model"
    raise ValueError(f"site {name!r} {why}; the nearest names that can take the mask token: {', '.join(near[:8])}.")


def hook_target(model: nn.Module, name: str) -> str:
    """The last child of a plain nn.Sequential, which has the same output.

    timm's gradient checkpointing calls the children of such a stage and never the stage, so a hook on it would not run.
    """
    module = model.get_submodule(name)
    while type(module) is nn.Sequential and len(module):
        child = next(reversed(module._modules))
        name, module = f"{name}.{child}", module._modules[child]
    return name


def unreached(model: nn.Module, maps: list[Tensor]) -> list[str]:
    """Names of the parameters whose gradient from a random functional of the maps is None or exactly zero."""
    generator = torch.Generator().manual_seed(1)
    loss = sum((m * torch.randn(m.shape, generator=generator, device="cpu").to(m)).sum() for m in maps)
    named = list(model.named_parameters())
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    dead = [g is None or (not g.is_meta and not g.any()) for g in gradients]
    return [name for (name, _), is_dead in zip(named, dead, strict=True) if is_dead]

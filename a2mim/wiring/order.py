"""The order in which a network's layers run: what lies in its first half, which maps in its last third."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from a2mim.wiring.model_type import TimmModel
from a2mim.wiring.tracing import feature_modules


@dataclass(frozen=True)
class Span:
    """When a module ran, in layers done before it began and until it ended."""

    began: int
    ended: int


@torch.no_grad()
def spans(model: TimmModel, images: Tensor) -> tuple[dict[str, Span], int]:
    """(module -> when it ran first, the number of layers): a layer is a module without children that has parameters.

    images: (B, C, H, W). The model runs once, in evaluation mode.
    """
    done = 0
    began: dict[str, int] = {}
    found: dict[str, Span] = {}
    handles = []

    def before(name: str):
        def note(module, inputs):
            began.setdefault(name, done)

        return note

    def after(name: str, layer: bool):
        def note(module, inputs, output):
            nonlocal done
            done += layer
            found.setdefault(name, Span(began[name], done))

        return note

    for name, module in model.named_modules():
        layer = not list(module.children()) and any(True for _ in module.parameters())
        if name:
            handles.append(module.register_forward_pre_hook(before(name)))
            handles.append(module.register_forward_hook(after(name, layer)))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval().forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return found, done


def first_parameters(model: TimmModel, images: Tensor, share: float) -> list[str]:
    """The parameters of the first `share` of the layers, those of the network itself (positions, tokens) included.

    Empty for a share of 0. Parameters that the forward never used are not among them.
    """
    if not share:
        return []
    ran, layers = spans(model, images)
    owners = {name: name.rpartition(".")[0] for name, _ in model.named_parameters()}
    limit = share * layers
    return [name for name, owner in owners.items() if not owner or _ran_before(ran, owner, limit)]


def _ran_before(ran: dict[str, Span], owner: str, limit: float) -> bool:
    """Whether a module began before `limit` layers were done; one that was never called counts as its parent does."""
    while owner and owner not in ran:
        owner = owner.rpartition(".")[0]
    return owner in ran and ran[owner].began < limit


def last_maps(model: nn.Module, images: Tensor, share: float) -> list[str]:
    """The modules that timm names as feature maps and that end within the last `share` of the layers, in order."""
    ran, layers = spans(model, images)
    names = [name for name, _ in feature_modules(model) if name in ran]
    late = [name for name in names if ran[name].ended > (1 - share) * layers]
    return sorted(dict.fromkeys(late), key=lambda name: ran[name].ended)

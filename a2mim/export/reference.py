"""What the exported model computes on fixed images, written down for whoever loads the export."""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from a2mim.evaluation.features import frozen
from a2mim.export.receipt import ExportError

SEED, IMAGES = 0, 2


def write_reference(model: nn.Module, input_size: list[int], path: Path) -> None:
    """Fixed normalised images of input_size (C, H, W) and the model's features of them, in float32 on the CPU."""
    images = torch.randn(IMAGES, *input_size, generator=torch.Generator().manual_seed(SEED))
    weight = next(model.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        model = copy.deepcopy(model).to("cpu", torch.float32)
    features = feature_tensors(model, images)
    if not all(torch.isfinite(tensor).all() for tensor in features.values()):
        raise ExportError("the features of the encoder are not finite: it has diverged and is not exported.")
    save_file({"images": images, **features}, path)


def feature_tensors(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """{"pooled": (B, D), "unpooled.0": …}: what comes before and after pooling, in evaluation mode."""
    with frozen(model):
        pooled, unpooled = model(images), list(_tensors(model.forward_features(images)))
    tensors = {"pooled": pooled} | {f"unpooled.{i}": tensor for i, tensor in enumerate(unpooled)}
    return {name: tensor.float().contiguous().clone() for name, tensor in tensors.items()}


def largest_difference(model: nn.Module, reference: Path) -> float:
    """The largest absolute difference of all features, as a share of the largest one; NaN where one is not finite."""
    expected = load_file(reference)
    found = feature_tensors(model, expected.pop("images"))
    worst = 0.0
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            return float("nan")
        scale = tensor.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        difference = ((found[name] - tensor).abs().max() / scale).item()
        worst = max(worst, difference) if difference == difference else difference
        if worst != worst:
            break
    return worst


def _tensors(output):
    """Every tensor of a model's output, however nested (CrossViT gives a list)."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)

"""BatchNorm's running statistics, taken anew from images as they will be seen.

Pre-training normalises masked images, whose statistics differ (the first variance of a ResNet is 0.41 of clean): frozen
features need statistics of clean ones.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Moments:
    """Mean and unbiased variance of everything one BatchNorm layer has seen, in float64."""

    def __init__(self):
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def update(self, layer: _BatchNorm, inputs: tuple[Tensor], output: Tensor) -> None:
        """Forward hook: with momentum 1 the running statistics are those of the batch just normalised."""
        count = inputs[0].numel() // layer.num_features
        mean, variance = layer.running_mean.double(), layer.running_var.double()
        self.count += count
        self.total = self.total + count * mean
        self.squares = self.squares + (count - 1) * variance + count * mean.square()

    def write(self, layer: _BatchNorm) -> None:
        mean = self.total / self.count
        layer.running_mean.copy_(mean)
        layer.running_var.copy_((self.squares - self.count * mean.square()) / (self.count - 1))


@torch.no_grad()
def calibrate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Sets every running mean and variance to that of all values the layer sees over the batches.

    Each batch is normalised by its own statistics (train mode, for BatchNorm layers only; dropout and the rest stay in
    eval mode), and the running statistics become those of the union of the batches, whatever their sizes. Modes and
    momentum are as before afterwards. Layers that the forward does not reach keep what they have.

    Args:
        batches: (B, C, H, W) float, normalised, moved to the model's device here.

    Returns:
        the number of images seen; 0, without looking at the batches, where the model has no BatchNorm.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    before = {layer: [b.clone() for b in layer.buffers(recurse=False)] for layer in layers}
    moments = {layer: _Moments() for layer in layers}
    handles = [layer.register_forward_hook(moments[layer].update) for layer in layers]
    device = next(model.parameters()).device
    images_seen = number_of_batches = 0
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.momentum = 1.0
        for batch in batches:
            model(batch.to(device))
            images_seen += len(batch)
            number_of_batches += 1
        if not images_seen:
            raise ValueError("no images were given to take BatchNorm statistics from; give at least one batch.")
    except BaseException:
        for layer in layers:
            for buffer, value in zip(layer.buffers(recurse=False), before[layer], strict=True):
                buffer.copy_(value)
        raise
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            layer.momentum = momenta[layer]
        for module, mode in modes.items():
            module.training = mode
    for layer in layers:
        if moments[layer].count:
            moments[layer].write(layer)
            layer.num_batches_tracked.fill_(number_of_batches)
    return images_seen

"""Recomputes BatchNorm's running statistics from given images, and shares them between processes.

Pre-training normalises masked images, whose statistics differ (the first variance of a ResNet is 0.41 of that of whole
images). Frozen features need statistics of whole images.
"""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

_TOO_FEW = "Expected more than 1 value per channel"  # torch, for one image at a layer whose map is 1 x 1


_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)  # what timm can synchronise
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")


def synchronise(model: nn.Module) -> nn.Module:
    """Replaces every BatchNorm by one that takes its statistics over all processes; returns the model.

    Activation and dropout of timm's BatchNormAct2d stay, and so do hooks; parameters are the same objects. torch's own
    conversion drops the activations. `unsynchronise` is the way back.
    """
    return _replace(model, lambda module: type(module) in _KINDS, _synchronised)


def unsynchronise(model: nn.Module) -> nn.Module:
    """Puts back the BatchNorm layers that `synchronise` replaced, with the current weights and statistics."""
    return _replace(model, lambda module: "_unsynchronised" in vars(module), _unsynchronised)


def _synchronised(layer: nn.Module) -> nn.Module:
    sync = convert_sync_batchnorm(layer)
    vars(sync)["_unsynchronised"] = layer  # not a child: the keys of the model stay as they are
    return _with_state(sync, layer)


def _unsynchronised(sync: nn.Module) -> nn.Module:
    layer = vars(sync)["_unsynchronised"]
    for own in ("_parameters", "_buffers"):
        setattr(layer, own, getattr(sync, own))
    return _with_state(layer, sync)


def _with_state(layer: nn.Module, other: nn.Module) -> nn.Module:
    """The layer, given the mode and the hooks of another."""
    layer.training = other.training
    for hooks in _HOOKS:
        setattr(layer, hooks, getattr(other, hooks))
    return layer


def _replace(
    module: nn.Module, chosen: Callable[[nn.Module], bool], change: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """Replaces every chosen submodule in place; returns the module, or its replacement if it is chosen itself."""
    if chosen(module):
        return change(module)
    for name, child in list(module.named_children()):
        if (other := _replace(child, chosen, change)) is not child:
            module._modules[name] = other
    return module


class _Moments:
    """Mean and unbiased variance of everything one BatchNorm layer has seen, in float64."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def update(self, layer: _BatchNorm, inputs: tuple[Tensor], output: Tensor) -> None:
        """Forward hook: with momentum 1 the running statistics are those of the batch just normalised."""
        count = inputs[0].numel() // layer.num_features
        assert layer.running_mean is not None and layer.running_var is not None  # _Moments takes tracking layers only
        mean, variance = layer.running_mean.double(), layer.running_var.double()
        self.count += count
        self.total = self.total.to(mean) + count * mean
        self.squares = self.squares.to(mean) + (count - 1) * variance + count * mean.square()

    def write(self, layer: _BatchNorm) -> None:
        assert layer.running_mean is not None and layer.running_var is not None
        mean = self.total / self.count
        layer.running_mean.copy_(mean)
        layer.running_var.copy_((self.squares - self.count * mean.square()) / (self.count - 1))


def has_batchnorm(model: nn.Module) -> bool:
    """Whether the model has a BatchNorm layer with running statistics."""
    return bool(_layers(model))


def batchnorm_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of every BatchNorm layer, on the CPU, by their keys in the state dictionary."""
    named = (
        (f"{name}.{key}", buffer)
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm)
        for key, buffer in layer.named_buffers(recurse=False)
    )
    return {key: buffer.detach().cpu() for key, buffer in named}


def load_statistics(model: nn.Module, statistics: Mapping[str, Tensor]) -> None:
    """Sets the running statistics to those of another process, see `batchnorm_statistics`; other tensors stay."""
    model.load_state_dict(statistics, strict=False)


@torch.no_grad()
def share_statistics(model: nn.Module) -> None:
    """Gives the running statistics of the first process to all of them, where there are several."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    found = [b for layer in _layers(model) for b in (layer.running_mean, layer.running_var) if b is not None]
    if not found:
        return
    joined = torch.cat([buffer.float() for buffer in found])
    distributed.broadcast(joined, 0)
    for buffer, value in zip(found, joined.split([len(buffer) for buffer in found]), strict=True):
        buffer.copy_(value)


@torch.no_grad()
def calibrate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Sets every running mean and variance to that of all values the layer sees over the batches.

    Each batch is normalised by its own statistics. Only BatchNorm layers are in train mode; dropout and the rest stay
    in eval mode. Afterwards the running statistics are those of all batches together, whatever their sizes, and modes
    and momentum are as before. Layers that the forward pass does not reach keep their statistics.

    A batch of one image has no variance where the feature map is 1 x 1. So a batch of one image is joined to the batch
    before it, or to the one after it. If there is only one image, and a layer cannot take it, the statistics stay
    as they were, with a warning.

    Args:
        batches: (B, C, H, W) float, normalised; moved to the model's device here.

    Returns:
        the number of images that the statistics were taken from; 0, without looking at the batches, where the model
        has no BatchNorm.

    Raises:
        ValueError: there is no batch.
    """
    layers = _layers(model)
    if not layers:
        return 0
    moments = {layer: _Moments() for layer in layers}
    device = next(model.parameters()).device
    images_seen = number_of_batches = 0
    try:
        with _gathering(model, moments):
            for batch in _without_single_images(batches):
                images_seen += len(batch)
                number_of_batches += 1
                model(batch.to(device))
            if not images_seen:
                raise ValueError("no images were given to take BatchNorm statistics from; give at least one batch.")
    except ValueError as error:
        if images_seen != 1 or _TOO_FEW not in str(error):
            raise
        warnings.warn(
            "BatchNorm's statistics stay as they were: one image is too few to take them from; give at least two",
            stacklevel=2,
        )
        return 0
    for layer, seen in moments.items():
        if seen.count:
            seen.write(layer)
            assert layer.num_batches_tracked is not None
            layer.num_batches_tracked.fill_(number_of_batches)
    return images_seen


def _layers(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextlib.contextmanager
def _gathering(model: nn.Module, moments: dict[_BatchNorm, _Moments]) -> Iterator[None]:
    """BatchNorm in train mode with momentum 1 and a hook each, all else in eval mode; on an error the old statistics
    come back.
    """
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in moments}
    before = {layer: [b.clone() for b in layer.buffers(recurse=False)] for layer in moments}
    handles = [layer.register_forward_hook(seen.update) for layer, seen in moments.items()]
    try:
        model.eval()
        for layer in moments:
            layer.train()
            layer.momentum = 1.0
        yield
    except BaseException:
        for layer, values in before.items():
            for buffer, value in zip(layer.buffers(recurse=False), values, strict=True):
                buffer.copy_(value)
        raise
    finally:
        for handle in handles:
            handle.remove()
        for layer in moments:
            layer.momentum = momenta[layer]
        for module, mode in modes.items():
            module.training = mode


def _without_single_images(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches in order; one of a single image is joined to its neighbour."""
    held: Tensor | None = None
    for batch in itertools.filterfalse(lambda batch: len(batch) == 0, batches):
        if held is None:
            held = batch
        elif len(batch) == 1 or len(held) == 1:
            held = torch.cat([held, batch.to(held.device)])
        else:
            yield held
            held = batch
    if held is not None:
        yield held

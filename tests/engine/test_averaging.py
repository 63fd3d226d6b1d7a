"""Averaged weights: the same numbers as one tensor after another, in one kernel."""

import torch
from mmengine.model import ExponentialMovingAverage
from torch.utils._python_dispatch import TorchDispatchMode

from a2mim.engine.averaging import AveragedTensors


class Operations(TorchDispatchMode):
    """Notes the name of every operation."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_an_update_is_one_kernel_reads_nothing_from_the_device_and_gives_the_same_bits():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 8))
    ours, plain = (
        kind(model, momentum=0.1, update_buffers=True) for kind in (AveragedTensors, ExponentialMovingAverage)
    )
    for step in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model[1](torch.randn(2, 8, 4, 4))
        with Operations() as seen:
            ours.update_parameters(model)
        if step:
            assert sum("lerp" in name for name in seen.names) == 1
            assert not any("_local_scalar_dense" in name or "is_nonzero" in name for name in seen.names)
        plain.update_parameters(model)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key


def test_a_restored_average_goes_on():
    model = torch.nn.Linear(2, 2)
    before = AveragedTensors(model, momentum=0.5)
    before.update_parameters(model)
    after = AveragedTensors(model, momentum=0.5)
    after.load_state_dict(before.state_dict())
    torch.nn.init.zeros_(model.weight)
    after.update_parameters(model)
    assert torch.equal(after.module.weight, before.module.weight / 2)

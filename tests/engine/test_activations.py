"""Activations computed twice give the same numbers as activations kept."""

import pytest
import timm
import torch
from torch import nn

from a2mim.checkpoints import list_checkpoints
from a2mim.encoder import MaskedEncoder
from a2mim.engine.activations import keep_activations, recompute_activations
from a2mim.mim import MIM

SMALL = {"model_args": {"depth": 3, "embed_dim": 64, "num_heads": 2}}
ENCODERS = {
    "vit": {"name": "vit_tiny_patch16_224", **SMALL, "drop_path_rate": 0.5},
    "xcit": {"name": "xcit_nano_12_p16_224", "model_args": {"depth": 3, "embed_dim": 64, "num_heads": 2}},
    "resnet": {"name": "resnet10t"},
    "dropped": {"name": "vit_tiny_patch16_224", **SMALL, "hide": "drop"},
    "dropped, with offsets": {
        "name": "convit_tiny",
        "hide": "drop",
        "model_args": {"depth": 3, "embed_dim": 16, "num_heads": 2},
    },
    "sparse": {"name": "resnet10t", "hide": "sparse"},
    "own": {"name": "torchvision.models.resnet18"},  # without a switch: block by block
}


def steps(encoder, recomputed):
    """(losses of two steps, gradients and buffers after them, bytes that the forward pass keeps)."""
    torch.manual_seed(0)
    model = MIM(MaskedEncoder(img_size=64, **encoder), {"type": "BlockMask"}, [{"type": "MaskedL1"}])
    if recomputed:
        recompute_activations(model.encoder)
    model.train()
    losses, kept = [], {}
    for step in range(2):
        torch.manual_seed(step)
        images = torch.rand(4, 3, 64, 64)

        def note(tensor):
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = sum(model(images, generator=torch.Generator().manual_seed(step)).values())
        loss.backward()
        losses.append(loss.item())
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, found | dict(model.named_buffers()), sum(kept.values())


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=list(ENCODERS))
def test_losses_gradients_and_statistics_are_the_same_to_the_bit(encoder):
    plain, again = steps(encoder, False), steps(encoder, True)
    assert plain[0] == again[0]
    for name, value in plain[1].items():
        assert torch.equal(value, again[1][name]), name
    assert again[2] < 0.9 * plain[2]


def test_a_network_without_blocks_is_refused_with_the_reason():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

    with pytest.raises(ValueError, match=r"Plain has no set_grad_checkpointing\(\), and no list of equal blocks"):
        recompute_activations(Plain())


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_the_way_back_leaves_nothing(name):
    model = timm.create_model(name)
    before = {key: dict(vars(module)) for key, module in model.named_modules()}
    recompute_activations(model)
    keep_activations(model)
    for key, module in model.named_modules():
        now = vars(module)
        assert "forward" not in now and not now["_forward_hooks"] and not now["_forward_pre_hooks"]
        assert now.get("grad_checkpointing", False) is before[key].get("grad_checkpointing", False)


def test_a_run_takes_the_setting_and_trains_the_same_weights(run):
    states = []
    for name, again in (("plain", False), ("again", True)):
        more = {"model.encoder": {"name": "vit_tiny_patch16_224", **SMALL}, "schedule.epochs": 2}
        folder, _ = run(name, activation_checkpointing=again, export=["timm"], **more)
        states.append(torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)["state_dict"])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name

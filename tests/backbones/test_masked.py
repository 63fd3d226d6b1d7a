"""X-ViT and LinGlo under the mask token: site, hidden cells, a training step, and the way back into plain timm."""

import copy
import functools
import json

import pytest
import timm
import torch
from torch import Tensor

from a2mim.checkpoints import FORMAT
from a2mim.encoder import MaskedEncoder
from a2mim.mim import MIM
from a2mim.weights.loading import load_encoder

MODELS = [  # name, then what the rule must find: site, its stride, output channels, output stride
    ("xvit_tiny_p16_224", "blocks.11", 16, 192, 16),
    ("linglo_b0", "stages.2", 16, 256, 32),
]
named = pytest.mark.parametrize("name", [row[0] for row in MODELS])


@functools.cache
def built(name: str) -> MaskedEncoder:
    """Shared between tests, which copy it before they change it."""
    torch.manual_seed(0)
    return MaskedEncoder(name, img_size=64).eval()


def some_images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def one_cell_hidden() -> Tensor:
    """The first image hides its upper right cell of 32 px, the second nothing."""
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[0, 0, 1] = True
    return mask


@pytest.mark.parametrize(("name", "site", "site_stride", "channels", "stride"), MODELS)
def test_the_token_goes_to_the_middle_map(name, site, site_stride, channels, stride):
    encoder = built(name)
    assert (encoder.site, [place.strides for place in encoder.sites]) == (site, [(site_stride, site_stride)])
    assert (encoder.channels, encoder.strides) == ([channels], [stride])
    assert encoder(some_images())[0].shape == (2, channels, 64 // stride, 64 // stride)


@named
def test_the_token_changes_hidden_cells_only(name):
    encoder, images, seen = copy.deepcopy(built(name)), some_images(), []
    encoder.model.get_submodule(encoder.site).register_forward_hook(lambda m, i, output: seen.append(output))
    before, after = encoder(images)[0], encoder(images, one_cell_hidden())[0]
    changes = [s.flatten(2).transpose(1, 2) if s.ndim == 4 else s for s in seen]
    change = (changes[1] - changes[0]).reshape(2, 4, 4, -1)  # a 4 x 4 grid of 16 px
    expected = torch.zeros_like(change)
    expected[0, 0:2, 2:4] = encoder.tokens[0].detach()
    torch.testing.assert_close(change, expected)
    assert not torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])


@named
def test_only_what_makes_the_logits_of_xvit_is_frozen(name):
    frozen = {key.split(".")[0] for key in built(name).frozen}
    assert frozen == ({"cls_token", "cls_attn_blocks"} if name.startswith("xvit") else set())
    assert built(name).model_args.get("global_pool") == ("avg" if name.startswith("xvit") else None)


@named
def test_a_training_step_is_finite_and_reaches_all_that_is_not_frozen(name):
    torch.manual_seed(0)
    losses = [dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)]
    model = MIM(MaskedEncoder(name, img_size=64), dict(type="BlockMask", mask_patch_size=32), losses)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    images, losses = (some_images() * 40 + 128).clamp(0, 255).to(torch.uint8), []
    for _ in range(2):
        losses.append(sum(value for key, value in model(images, mode="loss").items() if key.startswith("loss")))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    without = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # LinGlo's soft-max over the cells is blind to one number added to all of them
    assert [key for key in without if not key.endswith("saliency_bias")] == [] and all(
        loss.isfinite() for loss in losses
    )
    assert all(p.isfinite().all() for p in model.parameters())


@named
def test_the_state_loads_strictly_into_plain_timm_with_equal_features(name):
    encoder, images = built(name), some_images()
    arguments = json.loads(json.dumps(encoder.arguments()))
    plain = timm.create_model(arguments["name"], num_classes=0, **arguments["model_args"]).eval()
    plain.load_state_dict(encoder.model.state_dict(), strict=True)
    assert torch.equal(plain(images), encoder.model(images))


@named
def test_a_checkpoint_is_adapted_to_another_size(name, tmp_path):
    encoder = built(name)
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    pixels = dict(mean=[0.5] * 3, std=[0.5] * 3, interpolation="bilinear")
    meta = dict(encoder=encoder.arguments(), pixels=pixels)
    torch.save(dict(format=FORMAT, state_dict=state, meta=meta), tmp_path / "step_1.pth")
    model, preprocessing = load_encoder(tmp_path / "step_1.pth", img_size=96)
    assert preprocessing["img_size"] == [96, 96]
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, encoder.channels[0])
    same, _ = load_encoder(tmp_path / "step_1.pth")
    torch.testing.assert_close(same(some_images()), encoder.model(some_images()))

"""Networks that norm behind average pooling: pre-training norms their tokens and trains that norm."""

import pytest
import timm
import torch

from a2mim import MIM, MaskedEncoder
from a2mim.check.certificate import reload_difference
from a2mim.losses import MaskedL2
from a2mim.masking import BlockMask

NETWORKS = {
    "test_vit": {"global_pool": "avg"},
    "vit_little_patch16_reg4_gap_256": {"depth": 2},
    "naflexvit_base_patch16_gap": {"depth": 2, "embed_dim": 64, "num_heads": 2},
    "beit_base_patch16_224": {"depth": 2, "embed_dim": 64, "num_heads": 2},
}


def build(name, hide, **more):
    torch.manual_seed(0)
    return MaskedEncoder(name, img_size=64, mask_patch_size=32, hide=hide, model_args=dict(NETWORKS[name]), **more)


@pytest.mark.parametrize(
    ("name", "hide"),
    [(name, hide) for name in NETWORKS for hide in ("token", "drop") if (name[:4], hide) != ("beit", "drop")],
)
def test_the_norm_behind_the_pooling_is_trained_and_nothing_changes_without_a_mask(name, hide):
    encoder = build(name, hide)
    assert isinstance(encoder.model.norm, torch.nn.Identity)
    assert not [key for key in encoder.frozen if "fc_norm" in key]
    method = MIM(encoder, BlockMask(32, 0.5), [MaskedL2()], decoder="transformer" if hide == "drop" else "linear")
    images = torch.randn(2, 3, 64, 64)
    sum(method(images).values()).backward()
    assert all(p.requires_grad and p.grad.abs().sum() > 0 for p in encoder.model.fc_norm.parameters())
    plain = timm.create_model(encoder.name, num_classes=0, **encoder.model_args).eval()
    plain.load_state_dict(encoder.model.state_dict())  # strict: the keys are timm's
    encoder.eval()
    assert torch.equal(encoder.model.forward_features(images), plain.forward_features(images))
    layout = encoder.outputs[0].layout
    assert torch.equal(encoder(images)[0], layout.to_map(plain.forward_features(images)))
    assert reload_difference(encoder, images) == 0


def test_tokens_of_a_masked_image_class_tokens_included_pass_through_the_norm():
    encoder = build("vit_little_patch16_reg4_gap_256", "drop").eval()
    model, images = encoder.model, torch.randn(2, 3, 64, 64)
    torch.nn.init.normal_(model.fc_norm.weight), torch.nn.init.normal_(model.fc_norm.bias)
    (features,), (prefix,) = encoder(images, torch.zeros(2, 2, 2, dtype=torch.bool), with_prefixes=True)
    tokens = model.fc_norm(model.forward_features(images))
    assert torch.allclose(prefix, tokens[:, : model.num_prefix_tokens], atol=1e-5)
    assert torch.allclose(features.flatten(2).mT, tokens[:, model.num_prefix_tokens :], atol=1e-5)
    mask = torch.tensor([[[True, False], [False, False]]] * 2)
    assert not encoder(images, mask)[0][:, :, :2, :2].any()  # hidden cells are 0, not the norm's bias


def test_a_block_that_is_named_stays_without_a_norm():
    encoder = build("test_vit", "drop", maps=["blocks.1"]).eval()
    assert {"fc_norm.weight", "fc_norm.bias"} <= set(encoder.frozen)
    images = torch.randn(2, 3, 64, 64)
    shown = torch.zeros(2, 2, 2, dtype=torch.bool)
    assert torch.allclose(encoder(images, shown)[0], encoder(images)[0], atol=1e-5)

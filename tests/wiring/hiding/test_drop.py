"""Dropped patches: the network sees the visible ones alone, and is timm's without a mask."""

import copy

import pytest
import timm
import torch

from a2mim.encoder import MaskedEncoder
from a2mim.masking import BlockMask
from a2mim.wiring.hiding import leak_of
from a2mim.wiring.hiding.proof import trial

FAMILIES = {
    "vit_tiny_patch16_224": 1,
    "deit_tiny_distilled_patch16_224": 2,
    "eva02_tiny_patch14_224": 1,
    "vit_small_patch16_dinov3": 5,
    "vit_small_patch16_rope_mixed_224": 1,
    "cait_xxs24_224": 1,
    "convit_tiny": 1,
    "hiera_tiny_224": 0,
}


def build(name="vit_tiny_patch16_224", size=None, **more):
    torch.manual_seed(0)
    cell = 28 if "patch14" in name else 32
    return MaskedEncoder(name, img_size=size or 4 * cell, mask_patch_size=cell, hide="drop", **more).eval()


def draw(encoder, seed=0, batch=2):
    images = torch.randn(batch, 3, *encoder.img_size, generator=torch.Generator().manual_seed(seed))
    return images, BlockMask(encoder.img_size[0] // 4, 0.75)(batch, *encoder.img_size)


@pytest.mark.parametrize(("name", "prefix"), FAMILIES.items())
def test_hidden_pixels_change_nothing_and_hidden_cells_are_0(name, prefix):
    encoder = build(name)
    images, mask = draw(encoder)
    assert leak_of(encoder, images, mask) == 0
    with torch.no_grad():
        (features,), (tokens,) = encoder(images, mask, with_prefixes=True)
        plain = encoder.model.forward_features(images)
        whole = timm.create_model(name, num_classes=0, **encoder.model_args).eval()
        whole.load_state_dict(encoder.model.state_dict())  # strict: the keys are timm's
        assert torch.equal(whole.forward_features(images), plain)
    factor = features.shape[-1] // 4
    hidden = mask.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    moved = features.movedim(1, -1)
    assert moved[hidden].abs().max() == 0
    assert moved[~hidden].abs().amax(-1).min() > 0
    assert (0 if tokens is None else tokens.shape[1]) == prefix


def test_naflexvit_drops_in_evaluation_and_in_training_and_keeps_its_mode():
    encoder = build("naflexvit_base_patch16_gap", 64)
    images, mask = draw(encoder)
    for training in (True, False):
        encoder.train(training)
        assert encoder(images, mask)[0][mask[:, None].expand(-1, 768, -1, -1)].abs().max() == 0
        assert encoder.model.training == training
    assert encoder.model.patch_drop is None


def test_the_visible_tokens_are_those_of_mae():
    """Embed, add positions, take the visible ones, prepend the class token, blocks, norm: token by token."""
    encoder = build()
    images, mask = draw(encoder)
    model = encoder.model
    with torch.no_grad():
        maps, (prefix,) = encoder(images, mask, with_prefixes=True)
        tokens = model.patch_embed(images) + model.pos_embed[:, 1:]
        for b in range(2):
            shown = ~mask[b].repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()
            x = torch.cat([model.cls_token[0] + model.pos_embed[0, :1], tokens[b, shown]])[None]
            x = model.norm(model.blocks(x))[0]
            assert torch.allclose(prefix[b], x[:1], atol=2e-6)
            assert torch.allclose(maps[0][b].flatten(1)[:, shown].T, x[1:], atol=2e-6)


def test_convit_reads_the_offsets_between_the_kept_tokens():
    encoder = build("convit_tiny")
    images, _ = draw(encoder)
    left, top = torch.ones(2, 4, 4, dtype=torch.bool), torch.ones(2, 4, 4, dtype=torch.bool)
    left[:, :2, 0], top[:, 0, :2] = False, False  # as many tokens in other places
    seen = []
    handle = encoder.model.blocks[0].attn.register_forward_pre_hook(lambda m, a: seen.append(m.rel_indices.clone()))
    encoder(images, left), encoder(images, top)
    handle.remove()
    assert seen[0].shape == (2, 8, 8, 3)
    assert seen[0][0, 0, -1].tolist() == [1, 3, 10]  # right by 1, down by 3, squared distance
    assert seen[1][0, 0, -1].tolist() == [3, 1, 10]


def test_maps_of_several_blocks_are_scattered_too():
    encoder = build(maps=["blocks.3", "blocks.11"])
    images, mask = draw(encoder)
    maps = encoder(images, mask)
    hidden = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)
    for features in maps:
        assert features.shape == (2, 192, 8, 8)
        assert features.movedim(1, -1)[hidden].abs().max() == 0
        assert features.movedim(1, -1)[~hidden].abs().amax(-1).min() > 0


def test_gradients_with_checkpointing_are_those_without():
    gradients = []
    for checkpointing in (False, True):
        encoder = build().train()
        encoder.model.set_grad_checkpointing(checkpointing)
        images, mask = draw(encoder)
        sum(m.square().mean() for m in encoder(images, mask)).backward()
        gradients.append(encoder.model.blocks[0].attn.qkv.weight.grad)
    assert torch.allclose(gradients[0], gradients[1])


def test_a_copy_of_the_encoder_asks_its_own_mask():
    encoder = build()
    twin = copy.deepcopy(encoder)
    images, mask = draw(encoder)
    expected = encoder(images, mask)[0]
    assert torch.equal(twin(images, mask)[0], expected)
    assert torch.equal(twin(images)[0], encoder(images)[0])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("beit_base_patch16_224", "tables of relative positions"),
        ("xcit_nano_12_p16_224", "depthwise convolutions need the whole grid"),
        ("vit_tiny_r_s16_p8_224", "convolutional stem mixes"),
        ("resnet18", "only plain transformers"),
        ("swin_tiny_patch4_window7_224", "only plain transformers"),
    ],
)
def test_what_needs_all_tokens_is_refused_by_name_and_reason(name, reason):
    size = 224 if "swin" in name else 64
    with pytest.raises(ValueError, match=f"{name} cannot leave hidden patches out: .*{reason}"):
        MaskedEncoder(name, img_size=size, mask_patch_size=32 if size == 224 else 16, hide="drop")


def test_cells_that_cut_patches_are_refused():
    with pytest.raises(ValueError, match=r"whole units of 8x8 an image, and the mask has 16x16 cells"):
        MaskedEncoder("vit_tiny_patch16_224", img_size=128, mask_patch_size=8, hide="drop")
    with pytest.raises(ValueError, match="hide='holes' is not one of 'token', 'drop', 'sparse'"):
        MaskedEncoder("vit_tiny_patch16_224", img_size=128, hide="holes")
    with pytest.raises(ValueError, match=r"leave site='blocks.3' out"):
        MaskedEncoder("vit_tiny_patch16_224", img_size=128, hide="drop", site="blocks.3")


def test_the_trial_hides_about_half_of_each_image():
    encoder = build()
    images, mask = trial(encoder, 32)
    assert images.shape == (2, 3, 128, 128)
    assert mask.flatten(1).sum(1).tolist() == [8, 8]

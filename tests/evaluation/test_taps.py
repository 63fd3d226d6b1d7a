"""Parts of one forward pass: what each is on every family, and what a model does not have."""

import pytest
import timm
import torch

import a2mim  # noqa: F401  xvit and linglo become timm models
from a2mim.evaluation.taps import dino_parts, grid_parts, tap

SIZE = 64


def model_and_images(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **kwargs).eval(), torch.randn(2, 3, SIZE, SIZE)


def test_all_parts_of_a_vit_come_from_one_forward_and_equal_the_separate_ones():
    model, images = model_and_images("vit_tiny_patch16_224", img_size=SIZE, depth=5)
    calls, blocks = [], []
    model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        found = tap(model, ("default", "avg", "cls", "cls-1", "cls-3"))(images)
        assert calls == [1]
        for block in model.blocks:
            block.register_forward_hook(lambda module, inputs, output: blocks.append(output))
        tokens = model.forward_features(images)
        torch.testing.assert_close(found["default"], model.forward_head(tokens, pre_logits=True))
        torch.testing.assert_close(found["avg"], tokens[:, 1:].mean(dim=1))
        torch.testing.assert_close(found["cls"], tokens[:, 0])
        torch.testing.assert_close(found["cls-1"], tokens[:, 0])
        torch.testing.assert_close(found["cls-3"], model.norm(blocks[-3])[:, 0])


def test_maps_of_a_cnn_are_means_of_its_stages():
    model, images = model_and_images("resnet18")
    with torch.no_grad():
        found = tap(model, ("map-2", "default"))(images)
        stages = model.forward_intermediates(images, intermediates_only=True)
        torch.testing.assert_close(found["map-2"], stages[-2].mean(dim=(2, 3)))
        torch.testing.assert_close(found["default"], model(images))


@pytest.mark.parametrize(
    ("name", "kwargs", "inputs"),
    [
        ("vit_tiny_patch16_224", {"img_size": SIZE, "depth": 5}, [192, 384, 768, 960]),
        ("vit_tiny_patch16_224", {"img_size": SIZE, "depth": 2}, [192, 384, 384, 576]),
        ("xcit_nano_12_p16_224", {"img_size": SIZE}, [128, 256, 512, 640]),
        ("resnet18", {}, [512, 512 + 256 + 128 + 64]),
        ("convnext_atto", {}, [320, 640, 320 + 160 + 80 + 40, 920]),  # its pooled output is normalised, the mean is not
        ("xvit_nano_p16_224", {"img_size": SIZE}, None),
        ("linglo_b0", {"img_size": SIZE}, None),
        ("crossvit_tiny_240", {"img_size": 240}, None),
    ],
)
def test_the_grid_finds_inputs_on_every_family(name, kwargs, inputs):
    model, images = model_and_images(name, **kwargs)
    images = torch.randn(2, 3, 240, 240) if "crossvit" in name else images
    found = grid_parts(model, images, [1, 4])
    with torch.no_grad():
        widths = [sum(v.shape[1] for v in tap(model, parts)(images).values()) for parts in found.values()]
    assert widths == inputs if inputs else len(widths) >= 1
    assert len(set(found.values())) == len(found)


def test_dinos_choice_of_blocks():
    small, large = (
        timm.create_model(name, num_classes=0, depth=5, img_size=SIZE)
        for name in ("vit_tiny_patch16_224", "vit_base_patch16_224")
    )
    assert dino_parts(small)[0] == ("cls-4", "cls-3", "cls-2", "cls-1")
    assert dino_parts(large)[0] == ("cls-1", "avg")
    assert dino_parts(large, 2)[0] == ("cls-2", "cls-1")


def test_parts_that_a_model_does_not_have_are_refused():
    model, _ = model_and_images("resnet18")
    for parts, words in ((("cls",), "no class token"), (("cls-1",), "no class token in its blocks")):
        with pytest.raises(ValueError, match=words):
            tap(model, parts)

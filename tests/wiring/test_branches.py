"""Several maps, several tokens, and networks that see the image at sizes of their own (CrossViT)."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from a2mim.encoder import MaskedEncoder
from a2mim.losses import MaskedL1
from a2mim.masking import BlockMask, expand_mask, fill_mean
from a2mim.mim import MIM

SIDE, CELL = 120, 24  # of an image and of a cell, pixels; CrossViT's second branch sees 112 px


@pytest.fixture(scope="module")
def crossvit() -> MaskedEncoder:
    torch.manual_seed(0)
    return MaskedEncoder("crossvit_tiny_240", img_size=SIDE, mask_patch_size=CELL).eval()


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def mask() -> Tensor:
    return BlockMask(CELL, 0.6)(2, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def branch_inputs(encoder: MaskedEncoder, pictures: Tensor, hidden: Tensor | None) -> list[Tensor]:
    """What the two patch embeddings get."""
    seen, handles = [], []
    for embed in encoder.model.patch_embed:
        handles.append(embed.proj.register_forward_pre_hook(lambda m, args: seen.append(args[0])))
    encoder(pictures, hidden)
    for handle in handles:
        handle.remove()
    return seen


def test_both_branches_have_their_grid_their_token_and_their_decoder(crossvit):
    assert (crossvit.site, crossvit.channels) == ("blocks.1", [96, 192])
    assert [place.layout.grid for place in crossvit.sites] == [(10, 10), (7, 7)]
    assert crossvit.strides == [12, SIDE / 7]
    assert [tuple(t.shape) for t in crossvit.tokens] == [(96,), (192,)]
    model = MIM(crossvit, BlockMask(CELL, 0.6), [MaskedL1()])
    assert [d.proj.out_channels for d in model.decoders] == [3 * 12**2, 3 * 18**2]


def test_each_branch_s_hidden_pixels_hold_the_mean_colour_after_its_own_resize(crossvit):
    pictures, cells = images(), mask()
    filled = fill_mean(pictures, expand_mask(cells, SIDE, SIDE))
    colour = pictures.mean((2, 3), keepdim=True)
    plain = branch_inputs(crossvit, filled, None)
    for seen, bare, side in zip(branch_inputs(crossvit, filled, cells), plain, (120, 112), strict=True):
        assert seen.shape[-1] == side
        centre = ((torch.arange(side) + 0.5) * SIDE / side // CELL).long()
        hidden = cells[:, centre][:, :, centre][:, None].expand_as(seen)
        torch.testing.assert_close(seen[hidden], colour.expand_as(seen)[hidden])
        assert torch.equal(seen[~hidden], bare[~hidden])
    bled = (plain[1] - F.interpolate(filled, 112, mode="nearest-exact"))[hidden]
    assert bled.abs().max() > 0.1  # what interpolation alone leaves in hidden cells


def test_no_hidden_pixel_reaches_any_branch(crossvit):
    cells = mask()
    hidden = expand_mask(cells, SIDE, SIDE)
    first = images()
    noise = torch.where(hidden, images(seed=2), torch.zeros(()))
    noise = noise - torch.where(hidden, noise.sum((2, 3), keepdim=True) / hidden.sum((2, 3), keepdim=True), 0.0)
    maps = [crossvit(fill_mean(pictures, hidden), cells) for pictures in (first, first + noise)]
    for one, other in zip(*maps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # the mean, all that is known of hidden pixels


def test_both_branches_learn(crossvit):
    model = MIM(copy.deepcopy(crossvit).train(), BlockMask(CELL, 0.6), [MaskedL1()])
    model(images(), generator=torch.Generator().manual_seed(3))["loss_l1"].backward()
    sizes = [embed.proj.weight.grad.norm().item() for embed in model.encoder.model.patch_embed]
    assert min(sizes) > 0.05 * max(sizes)
    assert all(t.grad.any() for t in model.encoder.tokens)
    assert {key.split(".")[1] for key in model.encoder.frozen} == {"2"}  # the last fusion, which only class tokens take


def test_features_without_a_mask_equal_plain_timm_on_both_branches(crossvit):
    plain = timm.create_model("crossvit_tiny_240", num_classes=0, **crossvit.arguments()["model_args"]).eval()
    plain.load_state_dict(crossvit.model.state_dict(), strict=True)
    for ours, theirs in zip(crossvit(images()), plain.forward_features(images()), strict=True):
        torch.testing.assert_close(ours.flatten(2).transpose(1, 2), theirs[:, 1:])


def test_a_map_whose_cells_do_not_divide_the_image_is_resized_and_not_shifted(crossvit):
    model = MIM(crossvit, BlockMask(CELL, 0.6), [MaskedL1()])
    for decoder in model.decoders:
        torch.nn.init.zeros_(decoder.proj.weight)
    maps = [torch.zeros(1, 96, 10, 10), torch.zeros(1, 192, 7, 7)]
    with torch.no_grad():
        maps[1][0, 0] = torch.arange(7.0)[None]  # column number of the coarse cells
        model.decoders[1].proj.weight[:, 0] = 1
        columns = 2 * model.decode(maps, SIDE, SIDE)[0, 0, 60]
    middles = [round((i + 0.5) * SIDE / 7) for i in range(7)]
    torch.testing.assert_close(columns[middles], torch.arange(7.0), atol=0.05, rtol=0)


def test_pixels_beyond_the_last_cell_are_answered_by_the_mean_of_the_data():
    model = MIM(MaskedEncoder("vit_tiny_patch16_224", img_size=72), BlockMask(24, 0.5), [MaskedL1()])
    shown = model(torch.randint(0, 256, (2, 3, 72, 72), dtype=torch.uint8), mode="predict")
    assert shown["recon"].shape == shown["target"].shape
    assert not shown["recon"][..., 64:, :].any() and not shown["recon"][..., 64:].any()


def outputs(encoder: MaskedEncoder, names: tuple[str, ...], cells: Tensor | None) -> dict[str, Tensor]:
    seen, handles = {}, []
    for name in names:
        module = encoder.model.get_submodule(name)
        handles.append(module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out.clone()})))
    encoder(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4)), cells)
    for handle in handles:
        handle.remove()
    return seen


def test_each_of_several_sites_adds_its_own_token():
    torch.manual_seed(0)
    encoder = MaskedEncoder("resnet18", site=("layer2", "layer3"), img_size=64).eval()
    assert encoder.site == ("layer2", "layer3") and encoder.arguments()["site"] == ["layer2", "layer3"]
    assert [tuple(t.shape) for t in encoder.tokens] == [(128,), (256,)]
    cells = torch.tensor([[[True, False], [False, False]]])
    places = ("layer2.1", "layer3.1")
    with torch.no_grad():
        before = outputs(encoder, places, cells)
        encoder.tokens[1] += 1
        after = outputs(encoder, places, cells)
        assert torch.equal(before["layer2.1"], after["layer2.1"])
        moved = after["layer3.1"] - before["layer3.1"]
        torch.testing.assert_close(moved[:, :, :2, :2], torch.ones(1, 256, 2, 2))
        assert not moved[:, :, 2:].any() and not moved[:, :, :, 2:].any()
        encoder.tokens[0] += 1
        moved = outputs(encoder, places, cells)["layer2.1"] - after["layer2.1"]
        torch.testing.assert_close(moved[:, :, :4, :4], torch.ones(1, 128, 4, 4))


def test_a_copy_of_an_encoder_with_several_sites_has_hooks_of_its_own():
    encoder = MaskedEncoder("resnet18", site=("layer2", "layer3"), maps=("layer3", "layer4"), img_size=64).eval()
    other, cells = copy.deepcopy(encoder), torch.ones(1, 2, 2, dtype=torch.bool)
    pictures = torch.randn(1, 3, 64, 64)
    before = encoder(pictures, cells)
    for token in other.tokens:
        token.data += 1
    assert all(torch.equal(a, b) for a, b in zip(before, encoder(pictures, cells), strict=True))
    assert not torch.equal(other(pictures, cells)[0], before[0])


def test_each_of_several_maps_has_a_decoder_and_the_predictions_are_averaged():
    encoder = MaskedEncoder("resnet18", maps=("layer2", "layer4"), site="layer1", img_size=64)
    assert (encoder.channels, encoder.strides) == ([128, 512], [8, 32])
    model = MIM(encoder, BlockMask(32, 0.5), [MaskedL1()]).eval()
    pictures = torch.randn(2, 3, 64, 64)
    shown = model(pictures, mode="predict", mask=torch.eye(2, dtype=torch.bool).expand(2, 2, 2))
    maps = encoder(shown["masked"], torch.eye(2, dtype=torch.bool).expand(2, 2, 2))
    parts = [decoder(x) for decoder, x in zip(model.decoders, maps, strict=True)]
    torch.testing.assert_close(shown["recon"], sum(parts) / 2)
    plain = timm.create_model("resnet18", num_classes=0, features_only=True, out_indices=(2, 4)).eval()
    plain.load_state_dict(encoder.model.state_dict(), strict=False)
    for ours, theirs in zip(encoder(pictures), plain(pictures), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_lies_behind_the_last_map_is_frozen():
    encoder = MaskedEncoder("resnet18", maps="layer3", img_size=64)
    assert {key.split(".")[0] for key in encoder.frozen} == {"layer4"}
    assert encoder.channels == [256]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"site": "layer4", "maps": "layer2"}, "site 'layer4' lies behind every map that is decoded"),
        ({"site": ["layer1", "layer4"], "maps": "layer2"}, "site 'layer4' lies behind every map that is decoded"),
        ({"site": []}, "site=\\[\\] names no module"),
        ({"maps": "layer9"}, "maps 'layer9' is no module of this model; names nearest to it that have one: layer4"),
    ],
)
def test_sites_and_maps_that_cannot_be_are_one_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        MaskedEncoder("resnet18", img_size=64, **arguments)


def test_the_rule_stays_before_an_early_map():
    encoder = MaskedEncoder("convnext_atto", maps="stages.0", img_size=64)
    assert encoder.site == "stages.0"  # all stages behind it, which the image hardly passes by, would do nothing


def test_a_cell_that_does_not_fit_is_refused_when_the_model_is_built():
    with pytest.raises(ValueError, match=r"mask_patch_size=48 does not divide the image of 64x64 pixels; set .* to 32"):
        MIM(MaskedEncoder("resnet18", img_size=64), BlockMask(48, 0.5), [MaskedL1()])


def test_a_module_without_parameters_takes_the_token():
    encoder = MaskedEncoder("resnet18", site="maxpool", img_size=64).eval()
    assert (encoder.site, encoder.sites[0].strides, encoder.sites[0].channels) == ("maxpool", (4, 4), 64)
    cells = torch.tensor([[[True, False], [False, False]]])
    with torch.no_grad():
        before = outputs(encoder, ("maxpool",), cells)["maxpool"]
        encoder.tokens[0] += 1
        moved = outputs(encoder, ("maxpool",), cells)["maxpool"] - before
    torch.testing.assert_close(moved[:, :, :8, :8], torch.ones(1, 64, 8, 8))
    assert not moved[:, :, 8:].any() and not moved[:, :, :, 8:].any()


@pytest.mark.parametrize(
    ("site", "words"),
    [
        ("fc", "site 'fc' is a module that does not run on the way to the features"),
        ("layer9", "site 'layer9' is no module of this model"),
    ],
)
def test_a_site_that_cannot_be_is_told_why(site, words):
    with pytest.raises(ValueError, match=words):
        MaskedEncoder("resnet18", site=site, img_size=64)

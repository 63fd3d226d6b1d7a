"""Masks that do not fit an encoder are one sentence on the CPU; those that fit change nothing."""

import pytest
import torch

from a2mim.encoder import MaskedEncoder

RESNET_GN = {"layers": [1, 1, 1, 1]}


def uneven(side=2, counts=(1, 3)):
    mask = torch.zeros(len(counts), side * side, dtype=torch.bool)
    for row, count in zip(mask, counts, strict=True):
        row[:count] = True
    return mask.view(len(counts), side, side)


def build(name, hide, cell, **more):
    torch.manual_seed(0)
    return MaskedEncoder(name, img_size=64, mask_patch_size=cell, hide=hide, **more).eval()


@pytest.mark.parametrize("name", ["test_vit", "hiera_tiny_224"])
def test_unequal_counts_are_refused_where_hidden_patches_are_left_out(name):
    more = {"model_args": {"stages": (1, 1, 1, 1)}} if name == "hiera_tiny_224" else {}
    encoder = build(name, "drop", 32, **more)
    with pytest.raises(ValueError, match=r"hides 1 to 3 cells of its 2 images; with hide='drop' every image must have"):
        encoder(torch.randn(2, 3, 64, 64), uneven())
    assert encoder(torch.randn(2, 3, 64, 64), uneven(counts=(2, 2)))[0].isfinite().all()


def test_unequal_counts_are_refused_by_norms_of_single_images_alone():
    images = torch.randn(2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"with hide='sparse' every image must have .* statistics image by image"):
        build("resnet50_gn", "sparse", 32, model_args=RESNET_GN)(images, uneven())
    encoder = build("test_resnet", "sparse", 32)  # BatchNorm: each image may show as much as it likes
    both = encoder(images, uneven())[0]
    alone = torch.cat([encoder(images[i : i + 1], uneven()[i : i + 1])[0] for i in range(2)])
    assert torch.allclose(both, alone, atol=1e-5)


class Instance(torch.nn.Sequential):
    """A network of somebody's own with InstanceNorm."""

    def __init__(self, in_chans=3):
        super().__init__(
            torch.nn.Conv2d(in_chans, 8, 8, stride=8),
            torch.nn.InstanceNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 3, padding=1),
        )


def test_instancenorm_takes_its_statistics_of_visible_cells():
    encoder = MaskedEncoder(Instance(), img_size=64, mask_patch_size=32, hide="sparse").eval()
    seen = {}
    network = encoder.model.network
    network[0].register_forward_hook(lambda m, a, out: seen.update(given=out.detach()))
    network[1].register_forward_hook(lambda m, a, out: seen.update(made=out.detach()))
    mask = uneven(counts=(2, 2))
    encoder(torch.randn(2, 3, 64, 64), mask)
    shown = ~mask.repeat_interleave(4, 1).repeat_interleave(4, 2)
    for b in range(2):
        cells = seen["given"][b][:, shown[b]]
        deviation = (cells.var(1, correction=0) + 1e-5).sqrt()
        expected = (cells - cells.mean(1, keepdim=True)) / deviation[:, None]
        assert torch.allclose(seen["made"][b][:, shown[b]], expected, atol=1e-4)
        assert not seen["made"][b][:, ~shown[b]].any()
    with pytest.raises(ValueError, match="statistics image by image"):
        encoder(torch.randn(2, 3, 64, 64), uneven())


@pytest.mark.parametrize("hide", ["drop", "sparse"])
def test_a_wrong_number_of_hidden_cells_is_refused(hide):
    encoder = build("test_vit" if hide == "drop" else "test_resnet", hide, 32)
    images, mask = torch.randn(2, 3, 64, 64), uneven(counts=(2, 2))
    assert torch.equal(encoder(images, mask, hidden_cells=4)[0], encoder(images, mask)[0])
    with pytest.raises(ValueError, match="hidden_cells=6 and a mask that hides 4 cells in all"):
        encoder(images, mask, hidden_cells=6)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_cells_that_do_not_fit_a_sparse_network_are_one_sentence(name):
    encoder = build(name, "sparse", 32)
    stride = int(encoder.strides[-1])
    grid = 64 // stride
    with pytest.raises(ValueError, match=rf"map of {grid}x{grid} cells of {stride} px, and the mask has 8x8 cells .*"):
        encoder(torch.randn(2, 3, 64, 64), uneven(side=8, counts=(9, 9)))
    with pytest.raises(ValueError, match=rf"set mask_patch_size to {stride} or a multiple"):
        encoder(torch.randn(2, 3, 64, 64), torch.ones(2, 1, 2, dtype=torch.bool))


@pytest.mark.parametrize("hide", ["token", "drop", "sparse"])
@pytest.mark.parametrize("wrong", [torch.zeros(3, 2, 2).bool(), torch.zeros(2, 2, 2), torch.zeros(2, 1, 2, 2).bool()])
def test_a_mask_of_another_form_is_one_sentence(hide, wrong):
    encoder = build("test_resnet" if hide == "sparse" else "test_vit", hide, 32)
    with pytest.raises(ValueError, match=r"for 2 images; expected is \(2, rows, cols\) torch.bool"):
        encoder(torch.randn(2, 3, 64, 64), wrong)


def test_a_mask_that_leaves_nothing_to_see_is_refused_where_hidden_patches_are_left_out():
    with pytest.raises(ValueError, match=r"hides all 4 cells of an image; with hide='drop' at least one must stay"):
        build("test_vit", "drop", 32)(torch.randn(2, 3, 64, 64), uneven(counts=(4, 4)))

"""Video segmentation: propagation against its definition, the benchmark's measures, a folder of the right form."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import binary_dilation
from skimage.morphology import disk

from a2mim.evaluation import davis, evaluate
from a2mim.evaluation.davis import boundary_accuracy, propagate, region_similarity, working_size

PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]


def video(root, name="ball", frames=5, size=(64, 128), step=6):
    """A red and a green square that move over a dark ground, apart; annotations with DAVIS's palette."""
    pictures, labels = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
    pictures.mkdir(parents=True)
    labels.mkdir(parents=True)
    for i in range(frames):
        numbers = np.zeros(size, np.uint8)
        numbers[0:32, step * i : 32 + step * i] = 1
        numbers[32:64, 64 - step * i : 96 - step * i] = 2
        colours = np.array([[20, 20, 30], [230, 40, 40], [40, 220, 60]], np.uint8)[numbers]
        Image.fromarray(colours).save(pictures / f"{i:05d}.jpg", quality=95)
        image = Image.fromarray(numbers)
        image.putpalette(PALETTE)
        image.save(labels / f"{i:05d}.png")
    return root


def slow_propagate(features, sources, temperature, radius, kept):
    """The definition, cell by cell."""
    _, height, width = features.shape
    out = torch.zeros(sources[0][1].shape[0], height, width)
    for i in range(height):
        for j in range(width):
            found = []
            for bank, labels in sources:
                for p in range(height):
                    for q in range(width):
                        if abs(p - i) <= radius and abs(q - j) <= radius:
                            cosine = float(features[:, i, j] @ bank[:, p, q])
                            found.append((math.exp(cosine / temperature), labels[:, p, q]))
            found = sorted(found, key=lambda pair: -pair[0])[:kept]
            out[:, i, j] = sum(a * label for a, label in found) / sum(a for a, _ in found)
    return out


@pytest.mark.parametrize(("radius", "kept"), [(1, 5), (2, 3), (12, 7)])
def test_propagation_equals_its_definition_also_in_small_blocks(radius, kept, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = [torch.nn.functional.normalize(torch.randn(6, 4, 5, generator=generator), dim=0) for _ in range(3)]
    labels = [torch.rand(3, 4, 5, generator=generator) for _ in range(2)]
    sources = list(zip(features[1:], labels, strict=True))
    expected = slow_propagate(features[0], sources, 0.1, radius, kept)
    torch.testing.assert_close(propagate(features[0], sources, 0.1, radius, kept), expected)
    monkeypatch.setattr(davis, "_BLOCK_BYTES", 4 * 2 * 20 * 3)
    torch.testing.assert_close(propagate(features[0], sources, 0.1, radius, kept), expected)


def test_region_similarity_is_intersection_over_union():
    found, truth = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert region_similarity(found, truth) == 1
    found[:2], truth[1:3] = True, True
    assert region_similarity(found, truth) == pytest.approx(4 / 12)


def slow_boundary(found, truth, tolerance):
    """With the dilation by a disk that the benchmark's own code uses."""
    radius = math.ceil(tolerance * math.hypot(*found.shape))

    def edge(mask):
        out = np.zeros_like(mask)
        h, w = mask.shape
        for y in range(h):
            for x in range(w):
                neighbours = [(y, min(x + 1, w - 1)), (min(y + 1, h - 1), x)]
                if y < h - 1 and x < w - 1:
                    neighbours.append((y + 1, x + 1))
                out[y, x] = any(mask[n] != mask[y, x] for n in neighbours)
        return out

    edges = [edge(found), edge(truth)]
    wide = [binary_dilation(e, disk(radius)) for e in edges]
    precision = (edges[0] & wide[1]).sum() / edges[0].sum()
    recall = (edges[1] & wide[0]).sum() / edges[1].sum()
    return 2 * precision * recall / (precision + recall)


def test_boundary_accuracy_equals_the_one_with_dilation():
    generator = np.random.default_rng(0)
    for _ in range(5):
        y, x = generator.integers(2, 20, 2)
        found, truth = np.zeros((40, 50), bool), np.zeros((40, 50), bool)
        found[y : y + 12, x : x + 15] = True
        truth[y + 2 : y + 13, x + 1 : x + 20] = generator.random((11, 19)) < 0.9
        assert boundary_accuracy(found, truth, 0.03) == pytest.approx(slow_boundary(found, truth, 0.03))
    found[30:, 20:], truth[33:, 28:] = True, True  # to the last row and column
    assert boundary_accuracy(found, truth, 0.03) == pytest.approx(slow_boundary(found, truth, 0.03))
    empty = np.zeros((40, 50), bool)
    assert boundary_accuracy(empty, empty, 0.008) == 1 and boundary_accuracy(found, empty, 0.008) == 0
    assert boundary_accuracy(truth, truth, 0.008) == 1


def test_the_working_size_is_dinos():
    assert working_size((480, 854), 480, 64) == (480, 832)
    assert working_size((1080, 1920), 480, 64) == (480, 832)
    assert working_size((854, 480), 480, 64) == (832, 480)
    assert working_size((480, 480), 480, 64) == (480, 448)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "xcit_nano_12_p16_224"])
def test_moving_squares_are_followed_by_any_backbone(tmp_path, name):
    root = video(tmp_path)
    overrides = {"short_side": 128, "long_side_multiple": 32, "radius": 3}
    (result,) = evaluate(name, ["davis"], root, out=tmp_path / "out", overrides=overrides, device="cpu")
    assert result["n_test"] == 2 and set(result["scores"]) == {"ball/1", "ball/2"}
    low, high = result["interval"]
    assert low <= result["top1_last"] <= high
    assert result["top1_last"] == pytest.approx((result["J"] + result["F"]) / 2) and result["J"] > 25
    assert result["overridden"]["short_side"] == [480, 128]
    assert (tmp_path / "out" / "results.csv").is_file()


def test_labels_that_stand_still_are_carried_exactly(tmp_path):
    root = video(tmp_path, step=0)
    overrides = {"short_side": 64, "long_side_multiple": 32, "radius": 0, "sources_kept": 1}
    (result,) = evaluate("vit_tiny_patch16_224", ["davis"], root, overrides=overrides, device="cpu")
    assert result["J"] > 90  # squares of two cells; enlarging rounds their corners


def test_folders_of_another_form_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no DAVIS-2017 folder"):
        evaluate("resnet18", ["davis"], tmp_path, device="cpu")
    root = video(tmp_path)
    (root / "Annotations" / "480p" / "ball" / "00002.png").unlink()
    with pytest.raises(ValueError, match="5 frames and 4 annotations"):
        evaluate("resnet18", ["davis"], root, device="cpu")
    with pytest.raises(ValueError, match="read different data"):
        evaluate("resnet18", ["davis", "dino-knn"], root, device="cpu")

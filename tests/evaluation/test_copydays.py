"""Copy detection: descriptors and average precision against their definitions, a folder of the right form."""

import numpy as np
import pytest
import torch
from PIL import Image

from a2mim.evaluation import evaluate
from a2mim.evaluation.copydays import average_precision, descriptors, whitening


def copydays(root, scenes=4, seed=0):
    """Noise photographs at low resolution; strong copies are darker, the others recompressed."""
    generator = np.random.default_rng(seed)
    for folder in ("original", "strong", "jpegqual/20"):
        (root / folder).mkdir(parents=True)
    for i in range(scenes):
        pixels = generator.integers(0, 256, (6, 6, 3)).repeat(12, 0).repeat(12, 1).astype(np.uint8)
        Image.fromarray(pixels).save(root / "original" / f"20{i:02d}00.jpg")
        Image.fromarray(pixels // 2 + 20).save(root / "strong" / f"20{i:02d}01.jpg")
        Image.fromarray(pixels).save(root / "jpegqual" / "20" / f"20{i:02d}00.jpg", quality=20)
    return root


def test_generalised_mean_is_the_mean_at_power_one_and_nears_the_maximum():
    maps = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    tokens = torch.ones(2, 7)
    torch.testing.assert_close(descriptors(maps, None, 1.0, True), maps.mean(dim=(2, 3)))
    slow = torch.tensor([[(sum(float(v) ** 4 for v in m.flatten()) / 12) ** 0.25 for m in maps[0]]])
    torch.testing.assert_close(descriptors(maps[:1], None, 4.0, True), slow)
    assert (descriptors(maps, None, 200.0, True) <= maps.amax(dim=(2, 3))).all()
    assert descriptors(maps, tokens, 4.0, True).shape == (2, 12) and descriptors(maps, tokens, 4.0, False).shape == (
        2,
        5,
    )


@pytest.mark.parametrize(
    ("ranks", "n_right", "expected"),
    [([0], 1, 1.0), ([1], 1, 0.25), ([], 1, 0.0), ([0, 1], 2, 1.0), ([0, 3], 2, 0.5 + (1 / 3 + 2 / 4) / 4)],
)
def test_average_precision_adds_up_trapezoids(ranks, n_right, expected):
    assert average_precision(ranks, n_right) == pytest.approx(expected)


def test_whitened_descriptors_are_uncorrelated_with_unit_second_moment():
    features = torch.randn(400, 5, generator=torch.Generator().manual_seed(0)) @ torch.randn(5, 5)
    features -= features.mean(dim=0)
    white = whitening(features, 0.5)(features)
    torch.testing.assert_close(white.T @ white / 400, torch.eye(5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_copies_find_their_originals_by_any_backbone(tmp_path, name):
    root = copydays(tmp_path)
    (root / "distractors").mkdir()
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (40, 40, 3), np.uint8)).save(
        root / "distractors" / "a.png"
    )
    (result,) = evaluate(name, ["copydays"], root, overrides={"img_size": 64}, device="cpu")
    assert result["metric"] == "mAP (strong)" and result["n_test"] == 4 and result["n_distractors"] == 1
    assert set(result["blocks"]) == {"strong", "jpegqual/20"} and result["blocks"]["jpegqual/20"] > 60
    assert result["top1_last"] == pytest.approx(np.mean(list(result["scores"].values())))


def test_whitening_photographs_are_used_where_they_lie(tmp_path):
    root = copydays(tmp_path)
    (root / "whitening").mkdir()
    for path in (root / "original").iterdir():
        (root / "whitening" / path.name).write_bytes(path.read_bytes())
    plain = evaluate("resnet18", ["copydays"], copydays(tmp_path / "other"), overrides={"img_size": 64}, device="cpu")
    (result,) = evaluate("resnet18", ["copydays"], root, overrides={"img_size": 64}, device="cpu")
    assert result["whitened_on"] == 4 and plain[0]["whitened_on"] == 0
    assert result["data_fingerprint"] != plain[0]["data_fingerprint"]


def test_folders_of_another_form_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Copydays folder"):
        evaluate("resnet18", ["copydays"], tmp_path, device="cpu")
    root = copydays(tmp_path)
    (root / "strong" / "999900.jpg").write_bytes((root / "strong" / "200001.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"999900\.jpg has no original"):
        evaluate("resnet18", ["copydays"], root, device="cpu")

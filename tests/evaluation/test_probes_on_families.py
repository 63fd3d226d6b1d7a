"""Every probe of cells runs on every family of networks: ten that hold their tokens in ten ways."""

import math

import numpy as np
import pytest
import timm
from PIL import Image
from timm.models.crossvit import CrossVit
from timm.models.swin_transformer import SwinTransformer

import a2mim  # noqa: F401  xvit and linglo become timm models
from a2mim.data import masks
from a2mim.evaluation import evaluate

SIZE = 64
SIZES = {"tiny_crossvit_for_tests": 120}  # patches of 12 and 16 px have to fit
GRIDS = {  # (rows, columns) of the last map at that size
    "xcit_nano_12_p16_224": (4, 4),
    "test_vit": (4, 4),
    "tiny_swin_for_tests": (4, 4),
    "test_convnext": (2, 2),
    "resnet10t": (2, 2),
    "xvit_nano_p16_224": (4, 4),
    "linglo_b0": (2, 2),
    "tiny_crossvit_for_tests": (10, 10),
    "pvt_v2_b0": (2, 2),
    "test_efficientnet": (2, 2),
}
CLASSES = 5  # of the built-in textures


@timm.models.register_model
def tiny_swin_for_tests(pretrained=False, **arguments):
    """Tokens as (B, H, W, C); timm has no small one."""
    small = {"img_size": SIZE, "window_size": 4, "embed_dim": 16, "depths": (1, 1, 1), "num_heads": (1, 2, 4)}
    return timm.models.build_model_with_cfg(SwinTransformer, "tiny_swin_for_tests", pretrained, **small | arguments)


@timm.models.register_model
def tiny_crossvit_for_tests(pretrained=False, **arguments):
    """Two branches of tokens with a class token each."""
    small = {"img_scale": (1.0, 224 / 240), "patch_size": (12, 16), "embed_dim": (48, 96), "depth": ((1, 2, 0),)}
    small |= {"num_heads": (3, 3), "mlp_ratio": (4, 4, 1)}
    return timm.models.build_model_with_cfg(CrossVit, "tiny_crossvit_for_tests", pretrained, **small | arguments)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Two classes of six images to train on and three to test on, told apart by their brightness."""
    folder, generator = tmp_path_factory.mktemp("families"), np.random.default_rng(0)
    for split, images in (("train", 12), ("test", 6)):
        for i in range(images):
            path = folder / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 120 + 100 * (i % 2), (SIZE, SIZE, 3), np.uint8)).save(path)
    return folder


@pytest.mark.parametrize("name", GRIDS)
def test_probes_of_cells_run_on_every_family(name, labelled, monkeypatch):
    monkeypatch.setattr(masks, "TEXTURE_IMAGES", {"train": 10, "test": 3})
    options = {"img_size": SIZES.get(name, SIZE), "device": "cpu", "num_workers": 0}
    dense = evaluate(name, ["seg-knn", "seg-linear"], "textures", overrides={"held_out": 0.3}, **options)
    classified = evaluate(name, ["efficient-probe"], labelled, overrides={"epochs": 2, "least_steps": 2}, **options)
    for found in (*dense, *classified):
        low, high = found["interval"]
        assert math.isfinite(found["top1_last"]) and 0 <= low <= high <= 100, found["protocol"]
    rows, columns = GRIDS[name]
    for found in dense:
        assert found["cells"] == [rows, columns]
        assert len(found["iou"]) == CLASSES and found["n_test"] == 3
        assert 100 / CLASSES < found["oracle"] <= 100
    assert classified[0]["head"].startswith(f"{rows}×{columns} cells")
    assert len(classified[0]["correct"]) == 6

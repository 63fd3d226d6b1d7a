"""Every recipe that is shipped builds, is short, and states the numbers of its paper."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from a2mim.data.crops import DRAWS, height_and_width, random_crop
from a2mim.engine.assembly import build_mim
from a2mim.engine.config import load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))

CONVNEXT = "stages.3.downsample"
# recipe: (lr at 2,048 images, epochs, schedule, crop scale, clip, token's rate, losses, token mode, site, its grid)
REFERENCE = {
    "a2mim_resnet50": (1.2e-3, 300, "cosine", (0.8, 1), None, 0.1, ["focal_l1", "fourier"], "scaled", "layer3", 14),
    "a2mim_resnet101": (1.2e-3, 300, "cosine", (0.8, 1), None, 0.1, ["focal_l1", "fourier"], "scaled", "layer3", 14),
    "a2mim_swin_tiny": (8e-4, 300, "cosine", (0.67, 1), 5.0, 1.0, ["l1", "fourier"], "add", "patch_embed", 48),
    "a2mim_resnet18": (1.2e-3, 300, "cosine", (0.8, 1), None, 0.1, ["focal_l1", "fourier"], "scaled", "layer3", 14),
    "a2mim_convnext_tiny": (1.2e-3, 300, "cosine", (0.8, 1), None, 0.1, ["focal_l1"], "scaled", CONVNEXT, 7),
    "a2mim_vit_small": (4e-4, 800, "step", (0.67, 1), 5.0, 1.0, ["l1", "fourier"], "add", "patch_embed", 12),
    "a2mim_xcit": (8e-4, 300, "cosine", (0.67, 1), 5.0, 1.0, ["l1", "fourier"], "add", "blocks.5", 14),
    "a2mim_xcit_wide": (8e-4, 300, "cosine", (0.67, 1), 5.0, 1.0, ["l1", "fourier"], "add", "blocks.5", (12, 24)),
    "a2mim_xcit_128": (8e-4, 300, "cosine", (0.67, 1), 5.0, 1.0, ["l1", "fourier"], "add", "blocks.5", 8),
    "a2mim_resnet50_128": (1.2e-3, 300, "cosine", (0.8, 1), None, 0.1, ["focal_l1", "fourier"], "scaled", "layer3", 8),
    "a2mim_xvit": (8e-4, 300, "cosine", (0.67, 1), 5.0, 1.0, ["l1", "fourier"], "add", "blocks.5", 14),
    "a2mim_linglo": (8e-4, 300, "cosine", (0.67, 1), 5.0, 1.0, ["l1", "fourier"], "add", "stages.2", 14),
    "a2mim_crossvit": (8e-4, 300, "cosine", (0.67, 1), 5.0, 1.0, ["l1", "fourier"], "add", "blocks.1", 20),
    "a2mim_resnet152": (1.2e-3, 300, "cosine", (0.8, 1), None, 0.1, ["focal_l1", "fourier"], "scaled", "layer3", 14),
    "a2mim_resnet200": (1.2e-3, 300, "cosine", (0.8, 1), None, 0.1, ["focal_l1"], "scaled", "layer3", 14),
    "a2mim_convnext_small": (1.2e-3, 300, "cosine", (0.8, 1), None, 0.1, ["focal_l1"], "scaled", CONVNEXT, 7),
    "a2mim_convnext_base": (1.2e-3, 300, "cosine", (0.8, 1), None, 0.1, ["focal_l1"], "scaled", CONVNEXT, 7),
    "a2mim_vit_base": (4e-4, 800, "step", (0.67, 1), 5.0, 1.0, ["l1", "fourier"], "add", "patch_embed", 12),
    "a2mim_vit_large": (4e-4, 800, "step", (0.67, 1), 5.0, 1.0, ["l1", "fourier"], "add", "patch_embed", 12),
    "a2mim_deit_small_in100": (8e-4, 800, "cosine", (0.67, 1), 5.0, 1.0, ["l1", "fourier"], "add", "blocks.6", 14),
    "simmim_vit_base": (4e-4, 800, "step", (0.67, 1), 5.0, 1.0, ["l1"], "replace", "patch_embed", 14),
}


# other papers: (lr, images a step, epochs, crop scale, betas, clip, hide, decoder, target's channels and stride,
#                loss, hidden cells of all at 224 or 128 px)
MAE_128 = (0.2, 1), (0.9, 0.95), None, "drop", "TransformerDecoder", 3, 1, "l2", (48, 64)
MAE = *MAE_128[:-1], (147, 196)
FASTMIM = (0.2, 1), (0.9, 0.95), None, "token", "TransformerDecoder", 27, 8, "l2"
SPARK = 5.0, "sparse", "LightDecoder", 3, 1, "l2", (29, 49)
FEATURES = (0.9, 0.999), 3.0, "token", "EachMap", 768, 16, "smooth_l1"
METHODS = {
    "mae_vit_base": (2.4e-3, 4096, 800, *MAE),
    "mae_vit_small": (2.4e-3, 4096, 800, *MAE),
    "mae_vit_small_128": (2.4e-3, 4096, 800, *MAE_128),
    "mff_vit_small": (2.4e-3, 4096, 800, *MAE),
    "localmim_vit_base": (1.6e-3, 2048, 1600, *MAE_128[:4], "EachScale", 108, 4, "l2", (147, 196)),
    "maskfeat_vit_base": (1.6e-3, 2048, 300, (0.5, 1), (0.9, 0.999), 0.02, "token", "EachMap", 27, 8, "l2", (78, 196)),
    "fastmim_xcit_small": (2.4e-3, 4096, 800, *FASTMIM, (48, 64)),
    "fastmim_resnet50": (2.4e-3, 4096, 400, *FASTMIM, (12, 16)),
    "spark_resnet50": (3.2e-3, 4096, 1600, (0.67, 1), (0.9, 0.95), *SPARK),
    "spark_convnext_small": (3.2e-3, 4096, 1600, (0.67, 1), (0.9, 0.999), *SPARK),
    "distill_xcit_small": (1.2e-3, 2048, 300, (0.67, 1), *FEATURES, (78, 196)),
    "distill_resnet50": (1.2e-3, 2048, 300, (0.67, 1), *FEATURES, (30, 49)),
    "data2vec_vit_base": (2e-3, 2048, 800, (0.2, 1), *FEATURES, (120, 196)),
}


@functools.cache
def build(path):
    """(settings, model on the meta device) of a recipe as written; teachers are random networks of their kind."""
    settings = load_config(path)
    target = settings.model.get("target")
    if isinstance(target, dict) and "source" in target:
        target["source"] = target["source"].removesuffix(":pretrained")
    with torch.device("meta"):
        return settings, build_mim(settings)


@pytest.fixture(params=CONFIGS, ids=lambda p: p.stem)
def built(request):
    """(name, settings, model on the meta device) of a recipe as written."""
    return request.param.stem, *build(request.param)


def test_every_recipe_is_in_the_table_of_this_test():
    assert {p.stem for p in CONFIGS} == set(REFERENCE) | set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_rows_after_other_papers_state_their_numbers(name):
    settings, model = build(CONFIGS[0].parent / f"{name}.py")
    lr, images, epochs, scale, betas, clip, hide, decoder, channels, stride, loss, cells = METHODS[name]
    assert (settings.global_batch_size, settings.schedule.epochs, settings.clip_grad) == (images, epochs, clip)
    assert settings.optimizer.base_lr * images / 256 == pytest.approx(lr)
    assert (tuple(settings.data.scale), tuple(settings.optimizer.betas)) == (scale, betas)
    assert settings.schedule.min_lr == 0
    assert model.encoder.hide == hide
    assert type(model.decoders).__name__ == decoder
    assert (model.target_channels, model.target_stride) == (channels, stride)
    assert [part.name for part in model.losses] == [loss]
    mask = model.masking(3, *model.encoder.img_size, generator=torch.Generator().manual_seed(0), device="cpu")
    assert mask.flatten(1).sum(1).tolist() == [cells[0]] * 3
    assert mask[0].numel() == cells[1]


def test_the_settings_are_the_paper_s(built):
    name, settings, model = built
    if name in METHODS:
        pytest.skip("see the table of other papers")
    lr, epochs, schedule, scale, clip, token_lr, losses, token, site, grid = REFERENCE[name]
    optimizer, plan = settings.optimizer, settings.schedule
    assert settings.global_batch_size == 2048
    assert optimizer.base_lr * 2048 / 256 == pytest.approx(lr)
    assert (optimizer.type, optimizer.weight_decay) == ("adamw", 0.05)
    assert tuple(optimizer.betas) == (0.9, 0.999)
    assert optimizer.token_lr_scale == token_lr
    assert (plan.type, plan.epochs, plan.warmup_epochs, plan.min_lr) == (schedule, epochs, 10, 1e-5)
    assert tuple(settings.data.scale) == scale
    assert (settings.data.hflip, settings.data.interpolation) == (0.5, "bilinear")
    assert settings.clip_grad == clip
    assert [loss.name for loss in model.losses] == losses
    assert (model.encoder.token_mode, model.encoder.site) == (token, site)
    assert model.encoder.sites[0].layout.grid == height_and_width(grid)
    cell = {"a2mim_crossvit": 48, "a2mim_xcit_128": 16, "a2mim_resnet50_128": 16}.get(name, 32)  # 48: tokens of 12 px
    assert (model.masking.mask_patch_size, model.masking.mask_ratio) == (cell, 0.6)


def test_the_frequency_term_has_the_reference_s_weight_leak_and_fill():
    def fourier(name):
        return load_config(CONFIGS[0].parent / f"{name}.py").model["losses"][1]

    assert fourier("a2mim_resnet50") == {"type": "FourierLoss", "weight": 0.5, "leak": 1e-3}
    assert fourier("a2mim_vit_small") == {"type": "FourierLoss", "weight": 0.1}
    assert fourier("a2mim_swin_tiny") == {"type": "FourierLoss", "weight": 0.5}
    assert fourier("a2mim_resnet101") == {"type": "FourierLoss", "weight": 0.1, "leak": 1e-3, "criterion": "focal_l1"}


def test_convnext_s_token_starts_at_0_and_the_others_do_not():
    def token(name):
        settings = load_config(CONFIGS[0].parent / f"{name}.py", laptop=True)
        return build_mim(settings).encoder.tokens[0]

    assert token("a2mim_convnext_tiny").abs().max() == 0
    assert 0.015 < token("a2mim_resnet18").std() < 0.025


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_laptop_scale_builds_too(path):
    settings = load_config(path, laptop=True)
    with torch.device("meta"):
        model = build_mim(settings)
    size = height_and_width(settings.data.img_size)
    recon = model.decode(model.encoder(torch.zeros(2, 3, *size, device="meta")), *size)
    assert recon.shape == (2, model.target_channels, *(side // model.target_stride for side in size))
    assert sum(p.numel() for p in model.encoder.model.parameters()) < 30e6


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_recipe_is_one_short_file_that_says_how_it_is_run(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert f"python tools/pretrain.py configs/{path.name} --data" in text


def test_every_recipe_s_own_augmentation_runs_300_images():
    seen = set()
    for path in CONFIGS:
        data = load_config(path).data
        chosen = (tuple(data.scale), tuple(data.ratio), data.hflip, data.interpolation)
        assert data.transforms in (None, []), f"{path.name} has transforms of its own: run them here too"
        if chosen in seen:
            continue
        seen.add(chosen)
        draws, sides = np.random.default_rng(0), np.random.default_rng(1)
        for _ in range(300):
            pixels = draws.integers(0, 256, (*sides.integers(8, 64, 2), 3), dtype=np.uint8)
            crop = random_crop(pixels, draws.random(DRAWS), (32, 32), *chosen)
            assert crop.shape == (3, 32, 32) and crop.dtype == np.uint8

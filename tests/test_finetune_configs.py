"""Every fine-tuning recipe is its protocol, as published, and every protocol can be fine-tuned by."""

from pathlib import Path

import numpy as np
import pytest
import torch

from a2mim.data.augment import Augment
from a2mim.engine.config import load_config
from a2mim.engine.finetune_protocol import SETTING_OF, protocol_in_force
from a2mim.engine.finetune_settings import FinetuneSettings
from a2mim.engine.labelled_data import raise_epochs
from a2mim.engine.resuming import with_raised_epochs
from a2mim.protocols import protocol_names, read_protocol

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "finetune").glob("*.py"))
PROTOCOLS = protocol_names("finetune")


def test_every_protocol_has_a_recipe():
    assert [load_config(path, kind=FinetuneSettings).protocol for path in CONFIGS] == PROTOCOLS


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_s_constants_all_become_settings_and_come_back_unchanged(name):
    published = read_protocol(name)
    assert set(published.constants) - {"variant"} <= set(SETTING_OF)
    in_force = protocol_in_force(load_config(name, kind=FinetuneSettings))
    assert in_force.overridden == {}
    assert in_force.hash == published.hash


# what the papers say, in the engine's terms: (lr at the published batch, batch, epochs, layer decay, losses' type, EMA)
PAPERS = {
    "mae-finetune": (2e-3, 1024, 100, 0.65, "cross-entropy", None),
    "simmim-finetune": (5e-3, 2048, 100, 0.65, "cross-entropy", None),
    "rsb-a2": (5e-3, 2048, 300, 1.0, "bce", None),
    "rsb-a3": (8e-3, 2048, 100, 1.0, "bce", None),
    "spark-finetune": (16e-3, 2048, 300, 0.7, "bce", 1e-4),
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_numbers_are_the_papers(name):
    settings = load_config(name, kind=FinetuneSettings)
    optimizer, batch = settings.optimizer, settings.global_batch_size
    found = (optimizer.base_lr * batch / optimizer.base_batch, batch, settings.schedule.epochs)
    lr, *rest, ema = PAPERS[name]
    assert found[0] == pytest.approx(lr)
    assert [*found[1:], optimizer.layer_decay, settings.loss.type] == rest
    assert settings.ema == (None if ema is None else pytest.approx(ema))


def test_a_protocol_s_name_is_that_of_its_recipe_at_laptop_scale_too():
    for name in protocol_names("finetune"):
        recipe = f"finetune/{name.replace('-', '_')}"
        for laptop in (False, True):
            settings = load_config(name, laptop=laptop, kind=FinetuneSettings)
            assert settings == load_config(recipe, laptop=laptop, kind=FinetuneSettings)
    assert load_config("small-data", laptop=True, kind=FinetuneSettings).global_batch_size == 32


@pytest.mark.parametrize(("images", "epochs"), [(1, 300), (33, 300), (341, 30), (200, 50), (100_000, 30)])
def test_few_images_get_more_epochs(images, epochs):
    settings = load_config("small-data", kind=FinetuneSettings)
    found = raise_epochs(settings, images)
    assert found.schedule.epochs == epochs
    assert raise_epochs(found, images) == found
    assert raise_epochs(load_config("mae-finetune", kind=FinetuneSettings), images).schedule.epochs == 100


def test_the_rule_of_more_epochs_can_be_switched_off():
    settings = load_config("small-data", {"schedule.least_steps": None}, kind=FinetuneSettings)
    assert protocol_in_force(settings).overridden == {"least_steps": [300, 0]}
    assert raise_epochs(settings, 10).schedule.epochs == 30


def test_epochs_that_few_images_have_raised_are_no_other_run():
    settings = load_config("small-data", kind=FinetuneSettings)
    raised = raise_epochs(settings, 50).model_dump()
    assert with_raised_epochs(settings.model_dump(), raised) == raised
    fewer = load_config("small-data", {"schedule.epochs": 20}, kind=FinetuneSettings).model_dump()
    assert with_raised_epochs(settings.model_dump(), fewer) == settings.model_dump()
    assert with_raised_epochs(load_config("mae-finetune", kind=FinetuneSettings).model_dump(), raised) != raised


def test_a_change_is_named_and_changes_the_hash():
    settings = load_config("mae-finetune", {"optimizer.layer_decay": 0.75, "clip_grad": 1.0}, kind=FinetuneSettings)
    protocol = protocol_in_force(settings)
    assert protocol.overridden == {"layer_decay": [0.65, 0.75], "clip_grad": [0.0, 1.0]}
    assert protocol.hash != read_protocol("mae-finetune").hash
    large = load_config("mae-finetune", {"variant": "large"}, kind=FinetuneSettings)
    assert (large.schedule.epochs, large.optimizer.layer_decay) == (50, 0.75)
    assert protocol_in_force(large).overridden == {}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_recipe_has_a_laptop_scale_and_says_how_it_is_run(path):
    settings = load_config(path, laptop=True, kind=FinetuneSettings)
    assert settings.data.img_size is None  # the encoder's own
    assert settings.schedule.epochs <= 12
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert f"python tools/finetune.py configs/finetune/{path.name} SOURCE --data" in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_recipe_s_own_augmentation_runs_300_images(path):
    settings = load_config(path, kind=FinetuneSettings)
    chosen = settings.augment
    if not chosen.auto_augment and not chosen.color_jitter:
        pytest.skip("it augments nothing")
    augment = Augment(chosen.auto_augment, chosen.color_jitter, 32, (0.5,) * 3, settings.data.interpolation)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8))
    made = [augment(image, seed) for seed in range(300)]
    assert all(one.shape == image.shape and one.dtype == torch.uint8 for one in made)
    assert len({one.numpy().tobytes() for one in made}) > 100

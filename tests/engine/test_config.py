"""A recipe is read, completed and overridden; whatever is wrong is one sentence, before torch is imported."""

import subprocess
import sys

import pytest

from a2mim.engine.config import DEFAULTS, RULES, assign, complete, load_config, parse_options


def test_settings_that_a_recipe_does_not_name_take_their_defaults(recipe):
    config = load_config(recipe)
    assert config["data"]["img_size"] == 32
    assert config["data"]["hflip"] == DEFAULTS["data"]["hflip"]
    assert config["optimizer"]["betas"] == (0.9, 0.999)


def test_the_laptop_block_changes_what_it_names_and_options_come_last(recipe):
    assert load_config(recipe)["schedule"]["epochs"] == 3
    assert load_config(recipe, laptop=True)["schedule"]["epochs"] == 1
    assert load_config(recipe, {"schedule.epochs": 7}, laptop=True)["schedule"]["epochs"] == 7


def test_every_setting_has_a_rule_and_every_default_obeys_it():
    flat = {
        f"{key}.{inner}" if inner else key: value
        for key, group in DEFAULTS.items()
        for inner, value in (group.items() if isinstance(group, dict) and key != "laptop" else [("", group)])
    }
    assert set(flat) == set(RULES)
    for key, (holds, _) in RULES.items():
        assert holds(flat[key]) or key == "model", key


def test_any_seed_may_be_named_also_the_recipe_s_own(recipe):
    assert load_config(recipe, {"seed": 0})["seed"] == 0


def test_defaults_are_never_changed_by_a_recipe(recipe):
    load_config(recipe, {"data.transforms": [1], "data.img_size": 64})
    assert DEFAULTS["data"]["transforms"] == []
    assert DEFAULTS["data"]["img_size"] == 224


def test_lists_are_indexed_and_parts_take_new_arguments(recipe):
    config = load_config(recipe, {"model.losses.1.weight": 0.5, "model.encoder.site": "blocks.3"})
    assert config["model"]["losses"][1] == {"type": "FourierLoss", "weight": 0.5}
    assert config["model"]["encoder"]["site"] == "blocks.3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule.epochs": 3}, "schedule.epochs=3 changes nothing"),
        ({"schedule.epoch": 3}, "there is no setting 'schedule.epoch'; did you mean schedule.epochs"),
        ({"shedule.epochs": 3}, "there is no setting 'shedule.epochs'; did you mean schedule"),
        ({"schedule.epochs.x": 3}, "schedule.epochs is 3"),
        ({"model.losses.2.weight": 3}, "there is no setting 'model.losses.2.weight'"),
        ({"schedule.epochs": "many"}, "schedule.epochs='many' must be a whole number of at least 1"),
        ({"schedule.epochs": 2.5}, "schedule.epochs=2.5 must be a whole number"),
        ({"schedule.warmup_epochs": 3}, "schedule.warmup_epochs=3 must be less than schedule.epochs=3"),
        ({"schedule": "cosine"}, "schedule is a group; set what is in it: schedule.type, schedule.epochs"),
        ({"model": "resnet18"}, "model='resnet18' must be a dict"),
        ({"model.encoder": "resnet18"}, "model.encoder='resnet18' must be a dict with the name"),
        ({"model.losses": []}, r"model.losses=\[\] must be a list of at least one loss"),
        ({"optimizer.base_lr": -1}, "optimizer.base_lr=-1 must be a number of at least 0"),
        ({"optimizer.betas": 3}, "optimizer.betas=3 must be two numbers from 0 to 1"),
        ({"clip_grad": -1}, "clip_grad=-1 must be None or a number above 0"),
        ({"ema": 2}, "ema=2 must be None or a number above 0 and at most 1"),
        ({"data.mean": (0.5,)}, "data.mean has 1 and data.std 3 values, data.in_chans=3"),
        ({"data.mean": 0.5}, "data.mean=0.5 must be a list of numbers"),
        ({"data.scale": 0.5}, "data.scale=0.5 must be two numbers from 0 to 1"),
        ({"data.hflip": "yes"}, "data.hflip='yes' must be a number of at least 0 and at most 1"),
        ({"checkpoint.every_epochs": 0}, "checkpoint.every_epochs=0 must be a whole number of at least 1"),
        ({"judge.k": 0}, "judge.k=0 must be a whole number of at least 1"),
        ({"export": None}, "export=None must be a list of targets"),
        ({"amp": "fp8"}, "amp='fp8' must be one of 'auto', None, 'bf16', 'fp16'"),
        ({"data.img_size": 40}, "mask_patch_size=16 does not divide data.img_size=40; set the cell to 20 or 10"),
    ],
)
def test_an_option_that_is_wrong_or_changes_nothing_is_refused(recipe, options, message):
    with pytest.raises(ValueError, match=message):
        load_config(recipe, options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("global_batchsize = 8", "unknown setting 'global_batchsize'; did you mean global_batch_size"),
        ("data = dict(image_size=32)", "data: unknown setting 'image_size'; did you mean img_size"),
        ("schedule = 300", "schedule must be a dict of type, epochs"),
        ("custom_imports = dict(imports=['nowhere_at_all'])", "cannot be read as a config"),
        ("model = None", "sets no model"),
        ("import", "is not valid Python"),
        ("laptop = {'schedule.epoch': 1}", "there is no setting 'schedule.epoch'"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(recipe, line, message):
    recipe.write_text(recipe.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_config(recipe, laptop=True)


def test_a_missing_recipe_is_named_with_the_nearest_one(recipe):
    with pytest.raises(FileNotFoundError, match=r"tinny.py; did you mean .*tiny.py"):
        load_config(recipe.parent / "tinny.py")


def test_a_recipe_without_a_laptop_block_says_how_to_run_it(recipe):
    recipe.write_text(recipe.read_text() + "laptop = {}\n")
    with pytest.raises(ValueError, match="no laptop block"):
        load_config(recipe, laptop=True)


def test_options_are_python_literals_or_plain_words():
    pairs = ["a=1e-3", "b=(0.2, 1.0)", "c=none", "d=True", "e=xcit_nano_12_p16_224", "f=[1, 2]", "g=false", "h=a b=c"]
    assert parse_options(pairs) == {
        "a": 1e-3,
        "b": (0.2, 1.0),
        "c": None,
        "d": True,
        "e": "xcit_nano_12_p16_224",
        "f": [1, 2],
        "g": False,
        "h": "a b=c",
    }
    with pytest.raises(ValueError, match="takes key=value"):
        parse_options(["epochs"])


def test_assign_returns_what_stood_there():
    config = complete({"model": {"encoder": {"name": "a"}}})
    assert assign(config, "model.encoder.name", "b") == "a"
    assert config["model"]["encoder"]["name"] == "b"


def test_reading_a_recipe_imports_no_torch(recipe):
    code = (
        "import sys; from a2mim.engine.config import load_config;"
        f"load_config({str(recipe)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

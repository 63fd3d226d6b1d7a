"""A recipe is read, completed and overridden; whatever is wrong is one sentence, before torch is imported."""

import subprocess
import sys

import pytest

from a2mim.engine.config import KINDS, assign, check, complete, load_config, parse_options
from a2mim.engine.pretrain_settings import PretrainSettings


def test_settings_that_a_recipe_does_not_name_take_their_defaults(recipe):
    config = load_config(recipe)
    assert config.data.img_size == 32
    assert config.data.hflip == 0.5
    assert config.optimizer.betas == (0.9, 0.999)


def test_the_laptop_block_changes_what_it_names_and_options_come_last(recipe):
    assert load_config(recipe).schedule.epochs == 3
    assert load_config(recipe, laptop=True).schedule.epochs == 1
    assert load_config(recipe, {"schedule.epochs": 7}, laptop=True).schedule.epochs == 7


@pytest.mark.parametrize("kind", KINDS)
def test_every_default_obeys_its_own_rule(kind):
    row = {"encoder": {"name": "resnet18"}, "masking": {}, "losses": [{"type": "MaskedL1"}]}
    config = kind.defaults() | ({"model": row} if "model" in kind.required else {})
    assert check(config, kind).model_dump() == config


def test_any_seed_may_be_named_also_the_recipe_s_own(recipe):
    assert load_config(recipe, {"seed": 0}).seed == 0


def test_defaults_are_never_changed_by_a_recipe(recipe):
    load_config(recipe, {"data.transforms": [1], "data.img_size": 64}).data.transforms.append(2)
    assert load_config(recipe).data.transforms == []
    assert PretrainSettings.defaults()["data"]["img_size"] == 224


def test_lists_are_indexed_and_parts_take_new_arguments(recipe):
    config = load_config(recipe, {"model.losses.1.weight": 0.5, "model.encoder.site": "blocks.3"})
    assert config.model["losses"][1] == {"type": "FourierLoss", "weight": 0.5}
    assert config.model["encoder"]["site"] == "blocks.3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
        ({"optimizer.betas": 3}, "optimizer.betas=3 must be two numbers from 0 to 1, 1 excluded"),
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
        (
            "custom_imports = dict(imports=['nowhere_at_all'])",
            "cannot import 'nowhere_at_all': it is neither installed, nor in",
        ),
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


def test_an_option_that_is_the_recipe_s_own_value_is_noted_and_kept(recipe):
    notes = []
    config = load_config(recipe, {"schedule.epochs": 3, "clip_grad": 4.0}, note=notes.append)
    assert (config.schedule.epochs, config.clip_grad) == (3, 4.0)
    assert notes == ["schedule.epochs=3 changes nothing: it is the recipe's own value"]


@pytest.mark.parametrize(
    "lines",
    [
        "epochs = 4\nschedule = dict(epochs=epochs, warmup_epochs=0)",
        "batch = 16\nglobal_batch_size = batch * 2",
        "global_batch = 16\nglobal_batch_size = global_batch",
        "_scale = (0.2, 1)\ndata = dict(img_size=32, scale=_scale)",
        "import math\nfrom math import pi\noptimizer = dict(base_lr=pi / math.e)",
        "rates = [0.1 * i for i in range(3)]\nfor rate in rates:\n    pass\noptimizer = dict(base_lr=rates[-1])",
        "low, high = 0.3, 0.9\ndata = dict(img_size=32, scale=(low, high))",
        "def double(x):\n    return 2 * x * factor\nfactor = 4\nglobal_batch_size = double(2)",
    ],
)
def test_a_variable_that_only_helps_others_is_no_setting(recipe, lines):
    recipe.write_text(f"{recipe.read_text()}{lines}\n")
    load_config(recipe)


def test_a_helper_of_the_base_is_no_setting_either(recipe):
    (recipe.parent / "base.py").write_text(
        f"cell = 16\nlength = 4\n{recipe.read_text()}data = dict(img_size=2 * cell)\n"
    )
    recipe.write_text('_base_ = "base.py"\nschedule = dict(epochs=_base_.length)\n')
    config = load_config(recipe)
    assert (config.data.img_size, config.schedule.epochs) == (32, 4)


@pytest.mark.parametrize(
    "lines",
    [
        "epochs = 4",  # read by nobody
        "acumulate = 4\nlaptop = {'schedule.epochs': acumulate}",  # read, but a mistyped setting
        "seeds = 3\nlaptop = {'schedule.epochs': seeds}",
    ],
)
def test_a_mistyped_setting_is_no_helper(recipe, lines):
    recipe.write_text(f"{recipe.read_text()}{lines}\n")
    with pytest.raises(ValueError, match=r"unknown setting '\w+'.*a variable that only helps others"):
        load_config(recipe)


def test_a_mistyped_setting_that_a_base_sets_is_no_helper(recipe):
    recipe.rename(recipe.parent / "base.py")
    recipe.write_text('_base_ = "base.py"\nshedule = dict(epochs=4)\nclip_grad = shedule["epochs"] / 2\n')
    with pytest.raises(ValueError, match="unknown setting 'shedule'; did you mean schedule"):
        load_config(recipe)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x = 1 / 0", "ZeroDivisionError: division by zero, line"),
        ("assert seed > 3, 'too small'", "NameError"),
        ("assert False, 'too\\nsmall'", "AssertionError: too small, line"),
        ("data.size", "AttributeError"),
        ("[][1]", "IndexError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("exit()", "SystemExit"),
        ("def f():\n    f()\nf()", "RecursionError"),
        ("raise Exception", "Exception, line"),
        ("open('nowhere')", "FileNotFoundError"),
        ("_base_ = 'nowhere.py'", "nowhere.py"),
        ("data = dict(img_size=float('inf'))", "data.img_size=inf must be a whole number"),
        ("data = dict(img_size=-32)", "data.img_size=-32 must be a whole number"),
        ("optimizer = dict(base_lr=float('nan'))", "optimizer.base_lr=nan must be a number"),
        ("optimizer = dict(base_lr=float('inf'))", "optimizer.base_lr=inf must be a number"),
        ("clip_grad = float('inf')", "clip_grad=inf must be None or a number above 0"),
        ("data = dict(img_size=32, std=(0, 0, 0))", r"data.std=\(0, 0, 0\) must be a list of numbers above 0"),
        ("data = dict(img_size=32, std=(0.2, float('nan'), 0.2))", "data.std="),
        ("data = dict(img_size=32, scale=(0.9, 0.1))", "data.scale="),
        ("data = dict(img_size=32, ratio=(0, 1))", "data.ratio="),
        ("data = dict(img_size=32, value_range=(1, 1))", "data.value_range="),
        ("data = dict(img_size=32, value_range=(0, 'x'))", "data.value_range="),
        ("seed = True", "seed=True must be a whole number"),
        ("schedule = dict(epochs=3, warmup_epochs=-1)", "schedule.warmup_epochs=-1 must be"),
        ("model['masking'] = dict(mask_patch_size=16, size=object())", "model.masking.size"),
        ("seed = 10**5000", "seed=<int> must be a whole number"),
    ],
)
def test_a_recipe_that_raises_or_states_no_number_is_one_sentence(recipe, line, message):
    recipe.write_text(f"{recipe.read_text()}{line}\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_config(recipe)
    assert "\n" not in str(caught.value)


def test_own_modules_are_found_beside_the_recipe_and_in_the_current_folder(recipe, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (recipe.parent / "parts_beside.py").write_text("")
    (here / "parts_here.py").write_text("")
    recipe.write_text(f"{recipe.read_text()}custom_imports = dict(imports=['parts_beside', 'parts_here'])\n")
    load_config(recipe)
    assert {"parts_beside", "parts_here"} <= set(sys.modules)


def test_an_own_module_that_fails_is_named_with_its_own_error(recipe, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (recipe.parent / "parts_broken.py").write_text("import nothing_of_the_kind\n")
    recipe.write_text(f"{recipe.read_text()}custom_imports = dict(imports=['parts_broken'])\n")
    with pytest.raises(ValueError, match=r"cannot import 'parts_broken': ModuleNotFoundError: .*nothing_of_the_kind"):
        load_config(recipe)


def test_assign_returns_what_stood_there():
    config = complete({"model": {"encoder": {"name": "a"}}}, "it", PretrainSettings)
    assert assign(config, "model.encoder.name", "b", PretrainSettings) == "a"
    assert config["model"]["encoder"]["name"] == "b"


@pytest.mark.parametrize(
    ("recipe", "option", "words"),
    [
        ("finetune/mae_finetune", "labels.subsets=3", "labels.subset"),
        ("finetune/low_shot_finetune", "optimizer.base_lr=-1", "at least 0"),
        ("mae-finetune", "variant=vit-gigantic", "no variant"),
        ("finetune/mae_finetune", "protocol=mae-finetun", "did you mean mae-finetune"),
        ("finetune/mae_finetune", "protocol=dino-knn", "judges frozen features"),
    ],
)
def test_a_mistake_in_a_fine_tuning_recipe_is_told_before_torch_is_imported(recipe, option, words):
    program = "import sys\nfrom a2mim.cli import main\ncode = main(sys.argv[1:])\nassert 'torch' not in sys.modules\n"
    command = [
        sys.executable,
        "-c",
        program + "sys.exit(code)",
        "finetune",
        recipe,
        "resnet18",
        "--cfg-options",
        option,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_reading_a_recipe_imports_no_torch(recipe):
    code = (
        "import sys; from a2mim.engine.config import load_config;"
        f"load_config({str(recipe)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

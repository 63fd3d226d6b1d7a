"""Recipes that are made by rule, from a network's name and the number of images."""

import json

import pytest
import torch

import a2mim
from a2mim.cli import main
from a2mim.engine.assembly import build_mim
from a2mim.engine.config import load_config
from a2mim.engine.rules import batch_for, cell_for, recipe_for, text_of


@pytest.mark.parametrize(
    ("name", "token", "losses", "site"),
    [
        ("resnet10t", "scaled", ["MaskedFocalL1", "FourierLoss"], "layer3"),  # ResNet-50's row
        ("test_convnext", "scaled", ["MaskedFocalL1"], "stages.2"),  # ConvNeXt's
        ("test_vit", "add", ["MaskedL1", "FourierLoss"], "blocks.2"),  # XCiT's
    ],
)
def test_the_architecture_decides_on_token_losses_and_site(name, token, losses, site, tmp_path):
    made = recipe_for(name, images=50_000)
    encoder = made["model"]["encoder"]
    assert (encoder["token"], [loss["type"] for loss in made["model"]["losses"]]) == (token, losses)
    assert encoder["site"] == site
    for laptop in (False, True):
        with torch.device("meta"):
            model = build_mim(load_config(made, laptop=laptop))
        assert model.encoder.site == site
    (tmp_path / "kept.py").write_text(text_of(made, 50_000))
    assert load_config(tmp_path / "kept.py") == load_config(made)


def test_fewer_images_are_shown_more_often_in_smaller_batches():
    few, some, many = (recipe_for("resnet10t", images) for images in (60, 20_000, 1_281_167))
    assert [one["schedule"]["epochs"] for one in (few, some, many)] == [1600, 1600, 300]
    assert [one["global_batch_size"] for one in (few, some, many)] == [16, 512, 2048]
    assert few["laptop"]["schedule.epochs"] > some["laptop"]["schedule.epochs"] == 1
    unknown = recipe_for("resnet10t")
    assert {**many, "laptop": None} == {**unknown, "laptop": None}
    assert [batch_for(images, 2048) for images in (1, 5, 100, None)] == [1, 5, 16, 2048]


@pytest.mark.parametrize(
    ("size", "strides", "cell"),
    [((224, 224), (16.0,), 32), ((518, 518), (14.0,), 14), ((299, 299), (17.6, 37.4), 23), ((192, 384), (16.0,), 32)],
)
def test_a_cell_divides_the_image_and_covers_whole_tokens(size, strides, cell):
    assert cell_for(size, strides, 32) == cell


def test_a_network_that_nobody_knows_is_one_sentence_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"'resnet1O' is not a model that timm knows; the nearest names: resnet1"):
        recipe_for("resnet1O")


def test_a_model_needs_no_recipe_and_prints_the_one_it_gets(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", "--model", "test_resnet", "--data", str(images), "--laptop", "--keep", "kept.py"]
    short = ["--cfg-options", "schedule.epochs=1", "schedule.warmup_epochs=0", "export=[]", "data.img_size=32"]
    assert main([*words, "--device", "cpu", *short]) == 0
    said = capsys.readouterr().out
    kept = (tmp_path / "kept.py").read_text()
    assert kept in said
    assert "by rule for 24 images" in kept
    run = tmp_path / "runs" / "test_resnet"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["asked"]["config"]) == ("finished", "test_resnet")
    settings = json.loads((run / "settings.json").read_text())
    assert settings["model"]["encoder"] == load_config("kept.py").model["encoder"]
    assert main(["pretrain", "--model", "test_resnet", "--resume", "--device", "cpu"]) == 0
    assert "holds" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a2mim_xcit", "--model", "resnet18"], "--model resnet18 takes the place of the recipe a2mim_xcit"),
        (["a2mim_xcit", "--keep", "x.py"], "--keep writes the recipe that --model makes"),
    ],
)
def test_a_contradiction_is_one_sentence(words, message, capsys):
    assert main(["pretrain", *words]) == 1
    assert message in capsys.readouterr().err


def test_neither_a_recipe_nor_a_model_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["pretrain"])
    assert ended.value.code == 2
    assert "give a recipe, e.g. a2mim_xcit" in capsys.readouterr().err


def test_pretrain_takes_a_dictionary_a_name_and_a_path(images, tmp_path, recipe):
    settings = load_config(recipe).model_dump()
    given = {key: settings[key] for key in ("model", "data", "global_batch_size", "export")}
    given["model"]["encoder"] = {"name": "test_vit"}
    summary = a2mim.pretrain(
        given, images, tmp_path / "of_dict", device="cpu", num_workers=0,
        **{"schedule.epochs": 1, "schedule.warmup_epochs": 0},
    )  # fmt: skip
    assert summary["asked"]["config"] == "test_vit"
    for unknown, message in (({**given, "sede": 1}, "the recipe: unknown setting 'sede'"), ({}, "sets no model")):
        with pytest.raises(ValueError, match=message):
            a2mim.pretrain(unknown, images, tmp_path / "wrong", device="cpu")
    for word in ("a2mim_xcit", str(recipe)):
        assert load_config(word).model["losses"]

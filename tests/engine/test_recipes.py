"""Recipes by name, from any folder; a copy says what its original says."""

import shutil
from pathlib import Path

import pytest

from a2mim.cli import main
from a2mim.engine.config import load_config, own_settings
from a2mim.engine.recipes import find_recipe, recipes_folder, shipped_recipes

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_recipe_of_the_repository_ships_and_is_listed_with_its_title(capsys):
    names = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.py")}
    assert {recipe.name for recipe in shipped_recipes()} == {n for n in names if not n.startswith("_base_")}
    assert main(["recipes"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert all(recipe.minutes for recipe in shipped_recipes() if "/" not in recipe.name)
    assert lines["a2mim_xcit"].endswith("[laptop scale: 3 min on two cores]")
    assert "XCiT-S12/16" in lines["a2mim_xcit"] and "finetune/mae_finetune" in lines


def test_a_name_is_found_from_another_folder_and_a_path_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("a2mim_xcit") == recipes_folder() / "a2mim_xcit.py"
    assert find_recipe("finetune/mae_finetune") == recipes_folder() / "finetune" / "mae_finetune.py"
    Path("a2mim_xcit").write_text("seed = 1\n")
    assert find_recipe("a2mim_xcit") == Path("a2mim_xcit")


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("a2mim_xict", "a2mim_xcit"), ("mae_finetune", "finetune/mae_finetune"), ("configs/a2mim_xcti.py", "a2mim_xcit")],
)
def test_an_unknown_name_lists_the_nearest(given, nearest):
    with pytest.raises(FileNotFoundError, match=f"did you mean .*{nearest}"):
        find_recipe(given)


@pytest.mark.parametrize("recipe", shipped_recipes(), ids=lambda recipe: recipe.name)
def test_a_copy_needs_no_base_and_says_the_same(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "--copy", recipe.name]) == 0
    copy = tmp_path / recipe.path.name
    assert own_settings(copy) == own_settings(recipe.path) and "_base_ =" not in copy.read_text()
    body = copy.read_text().split('"""')[2]
    assert max(map(len, body.splitlines())) <= 120


def test_a_copy_never_replaces_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a2mim_xcit.py").write_text("mine")
    assert main(["recipes", "--copy", "a2mim_xcit"]) == 1
    assert "exists" in capsys.readouterr().err and Path("a2mim_xcit.py").read_text() == "mine"


def test_without_recipes_the_installation_is_named(tmp_path, monkeypatch):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr("a2mim.engine.recipes._PACKAGE", tmp_path / "a2mim")
    assert recipes_folder() == tmp_path / "configs"
    shutil.rmtree(tmp_path / "configs")
    with pytest.raises(FileNotFoundError, match="install it again"):
        recipes_folder()


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("a2mim_xcit", "a2mim pretrain a2mim_xcit.py"),
        ("finetune/rsb_a2", "a2mim finetune rsb_a2.py SOURCE"),
        ("refine/mae_ct", "a2mim refine SOURCE --recipe mae_ct.py"),
    ],
)
def test_a_copy_names_itself_in_the_command_that_runs_it(name, typed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "--copy", name]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"next:   {typed}"
    docstring = Path(name.rpartition("/")[2] + ".py").read_text(encoding="utf-8").split('"""')[1]
    assert typed.split(" SOURCE")[0] in docstring and "tools/" not in docstring and "configs/" not in docstring


def test_an_edited_copy_beside_the_name_of_its_original_is_told_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["recipes", "--copy", "a2mim_xcit"])
    with pytest.warns(UserWarning, match=r"ships with a2mim; type a2mim_xcit.py for the file"):
        load_config("a2mim_xcit", note=print)

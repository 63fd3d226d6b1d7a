"""What is installed works alone: the wheel has recipes, templates and protocols, and runs from an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what the wheel of a2mim brings; its dependencies are those of this environment."""
    pytest.importorskip("build", reason="what builds a wheel is not among the lowest versions")
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"  # setuptools writes into the folder that it builds
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("needs a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place / "dist"), str(source)]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = (place / "dist").glob("*.whl")
    assert list((place / "dist").glob("*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site-packages")
    return place / "site-packages"


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    code = "import sys, a2mim; assert 'site-packages' in a2mim.__file__; from a2mim.cli import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_what_the_commands_need(installed):
    package = installed / "a2mim"
    recipes = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.py")}
    assert {path.relative_to(package / "configs") for path in (package / "configs").rglob("*.py")} == recipes
    assert list((package / "report" / "templates").glob("*.html"))
    assert list((package / "protocols").glob("*.toml"))
    assert not (installed / "tests").exists() and not (installed / "configs").exists()


def test_recipes_are_listed_from_an_empty_folder(installed, tmp_path):
    listed = run(installed, tmp_path, "recipes")
    assert listed.returncode == 0 and "a2mim_xcit" in listed.stdout, listed.stderr


@pytest.mark.slow
def test_the_first_command_runs_from_an_empty_folder(installed, tmp_path):
    small = ["schedule.epochs=1", "schedule.warmup_epochs=0", "model.encoder.name=test_vit", "global_batch_size=256"]
    small += ["data.img_size=32", "judge.train_images=64", "judge.test_images=64", "judge.every_epochs=None"]
    found = run(installed, tmp_path, "pretrain", "a2mim_xcit", "--cfg-options", *small)
    assert found.returncode == 0, found.stderr[-2000:]
    assert (tmp_path / "runs" / "a2mim_xcit" / "encoder" / "model.safetensors").is_file()
    assert "runs/a2mim_xcit" in found.stdout

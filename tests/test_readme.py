"""What the README says is run: its commands, its Python, its links."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest

from a2mim.cli import build_parser
from a2mim.engine.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, flags=re.S)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
TINY = ["schedule.epochs=1", "schedule.warmup_epochs=0", "log.pictures=2"]
TINY += ["judge.train_images=64", "judge.test_images=32"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the README's relative paths mean something."""
    place = tmp_path_factory.mktemp("place")
    for name in ("configs", "tools"):
        (place / name).symlink_to(ROOT / name)
    generator = np.random.default_rng(0)
    for i in range(64):
        image = generator.integers(0, 256, (40, 40, 3), np.uint8)
        mmcv.imwrite(image, str(place / "path" / "to" / "images" / "ab"[i % 2] / f"{i}.png"))
    return place


def run(arguments, place):
    done = subprocess.run([sys.executable, *arguments], cwd=place, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_two_commands_install_then_run_and_test():
    first, second = COMMANDS[:2]
    install = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
    assert first == f"{install}. && .venv/bin/python tools/pretrain.py configs/a2mim_xcit.py"
    assert second == f"{install}'.[test]' && .venv/bin/python -m pytest"
    assert "```bash" in "\n".join(README.splitlines()[:14])


@pytest.mark.slow
def test_the_main_command_and_those_that_follow_it_run_in_their_order(place):
    main = shlex.split(COMMANDS[0].split("&&")[-1])[1:]
    printed = run([*main, "--cfg-options", *TINY, "data.img_size=32", "global_batch_size=512"], place)
    assert "no --data given" in printed
    for line in ("loss ", "before ", "after ", "picture ", "summary ", "encoder "):
        assert re.search(rf"^  {line}", printed, flags=re.M), line
    following = [c for c in COMMANDS if "runs/a2mim_xcit" in c]
    assert len(following) == 4
    for command in following:
        quick = ["--cfg-options", *TINY[:2], "labels.subset=10%"] if "finetune.py" in command else []
        run(shlex.split(command)[1:] + quick, place)
    run(shlex.split(next(c for c in COMMANDS if "make_shards" in c))[1:], place)
    assert len(list((place / "shards").glob("*.tar"))) == 1
    python = next(text for kind, text in BLOCKS if kind == "python" and "local-dir" in text)
    run(["-c", f"import a2mim\n{python}\nassert encoder.num_classes == 10"], place)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(place):
    python = next(text for kind, text in BLOCKS if kind == "python" and "a2mim.pretrain" in text)
    quick = (
        '"global_batch_size": 16, "data.img_size": 32, "schedule.warmup_epochs": 0, "export": [], "schedule.epochs": 1'
    )
    run(["-c", python.replace('"schedule.epochs": 1', quick)], place)


def test_every_other_command_names_files_and_flags_that_exist():
    known = subprocess.run(
        [sys.executable, "-m", "a2mim.cli", "pretrain", "--help"], check=True, capture_output=True, text=True
    ).stdout
    for command in COMMANDS[2:]:
        for path in re.findall(r"(?:tools|configs)/\w+\.py", command):
            assert (ROOT / path).is_file(), path
        if "pretrain.py" in command:
            assert set(re.findall(r"--[a-z][a-z-]+", command)) - {"--nproc-per-node"} <= set(
                re.findall(r"--[a-z-]+", known)
            )


def anchors(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_and_paths_in_the_pages_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for path in re.findall(r"`((?:a2mim|configs|tools|tests|benchmarks)/[\w/]+\.py)", text):
        assert (ROOT / path).is_file(), path


def test_the_recipe_of_the_documentation_is_a_recipe(tmp_path):
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    text = next(t for t in re.findall(r"```python\n(.*?)```", page, flags=re.S) if "_base_" in t)
    (tmp_path / "_base_").symlink_to(ROOT / "configs" / "_base_")
    (tmp_path / "whole.py").write_text(text)
    shipped = load_config(ROOT / "configs" / "a2mim_resnet50.py")
    written = load_config(tmp_path / "whole.py")
    assert written.model_dump(exclude={"laptop"}) == shipped.model_dump(exclude={"laptop"})


def test_the_recipe_table_lists_every_recipe():
    listed = set(re.findall(r"^\| `configs/(\w+)\.py`", README, flags=re.M))
    assert listed == {p.stem for p in (ROOT / "configs").glob("*.py")}


def test_the_table_of_commands_lists_every_command_and_no_other():
    table = [line for line in README.split("## All commands")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    first = "".join(row.split("|")[1] for row in table)
    known = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    assert sorted(span.split()[0] for span in re.findall(r"`([^`]+)`", first)) == sorted(known)

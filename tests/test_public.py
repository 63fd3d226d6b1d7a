"""What `import a2mim` gives, and what the command says of itself."""

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import a2mim
from a2mim.cli import main


def test_every_public_name_is_listed_and_resolves():
    assert {name for name in dir(a2mim) if not name.startswith("__")} == set(a2mim.__all__)
    for name in a2mim.__all__:
        assert callable(getattr(a2mim, name)), name
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        a2mim.pretrian  # noqa: B018


def test_editors_are_told_of_every_public_name_as_it_is_resolved():
    """The imports under TYPE_CHECKING are those that `__getattr__` does."""
    tree = ast.parse(Path(a2mim.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {node.names[0].asname: node.module for node in block.body if isinstance(node, ast.ImportFrom)}
    assert set(told) == set(a2mim.__all__)
    for name, module in told.items():
        if name != "export":  # the room, which can be called
            assert getattr(a2mim, name) is getattr(import_module(module), name)


def test_listing_the_names_imports_no_torch():
    code = "import sys, a2mim; dir(a2mim); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_export_is_a_room_and_can_be_called(tmp_path):
    (receipt,) = a2mim.export("test_vit", to=["safetensors"], out_dir=tmp_path)
    assert receipt["target"] == "safetensors" and a2mim.export.export is not None


def test_the_version_is_told_for_a_bug_report_without_importing_torch():
    code = "import sys; from a2mim.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0
    for name in ("a2mim", "python", "torch", "timm", "mmengine", "machine"):
        assert f"\n{name} " in f"\n{told.stdout}"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_get_what_they_need_to_complete(shell, capsys):
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    assert "pretrain" in capsys.readouterr().out


def test_the_lines_that_a_run_prints_work_as_typed_in_a_fresh_process(tmp_path):
    from a2mim.engine.report import timm_lines

    (receipt,) = a2mim.export("test_vit", to=["timm"], out_dir=tmp_path / "it's here")
    line = timm_lines(receipt["folder"], classes=3)[0].strip()
    code = f"model = {line.rpartition('; ')[2]}"
    code = f"{line.rpartition('; ')[0]}\n{code}\nassert model.num_classes == 3"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert loaded.returncode == 0, loaded.stderr[-1000:]


@pytest.mark.parametrize("words", ["settings", "--version", "--help", "pretrain --help", "--print-completion bash"])
def test_a_reader_that_goes_away_is_no_error(words):
    """As in `a2mim settings | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "a2mim.cli", *words.split()]
    process = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert process.returncode in (141, 0 if "--help" in words else 141)  # argparse passes over it in its help
    assert process.stderr == b""

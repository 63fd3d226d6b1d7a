"""torchvision whose compiled operators are for another torch is survived; every other torchvision is left alone."""

import subprocess
import sys

BROKEN = """
import torch

@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)
"""


def run(code, path):
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"],
        check=False,
        capture_output=True,
        text=True,
    )


def package(tmp_path, source):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(source)
    return tmp_path


def test_a_torchvision_without_its_operators_imports_after_a2mim_and_not_before(tmp_path):
    path = package(tmp_path, BROKEN)
    plain = run("import torchvision", path)
    assert plain.returncode != 0
    assert "operator torchvision::nms does not exist" in plain.stderr
    mended = run("import a2mim, torchvision", path)
    assert mended.returncode == 0, mended.stderr


def test_operators_that_are_there_are_not_declared_a_second_time(tmp_path):
    path = package(tmp_path, BROKEN)
    whole = """
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import a2mim, torchvision
"""
    assert run(whole, path).returncode == 0


def test_timm_imports_here(tmp_path):
    assert run("import a2mim, timm", tmp_path).returncode == 0


def test_importing_a2mim_imports_neither_torch_nor_timm(tmp_path):
    done = run("import a2mim; sys.exit(bool({'torch', 'timm', 'mmengine'} & set(sys.modules)))", tmp_path)
    assert done.returncode == 0

"""timm knows our models whichever of the two is imported first, and `import a2mim` stays light."""

import subprocess
import sys

from a2mim import compat

WHOLE_TORCHVISION = """
import contextlib, importlib.util, pathlib, torch
for library in pathlib.Path(importlib.util.find_spec("torchvision").origin).parent.glob("_C*.so"):
    with contextlib.suppress(OSError):
        torch.ops.load_library(library)
declared = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):  # as where torchvision was built for another torch
        declared.define(name + "(Tensor a, Tensor b, float c) -> Tensor")
"""
BUILD = "\nassert timm.create_model('linglo_b0').num_classes and timm.is_model('xvit_small_p16_224')"


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_timm_after_a2mim():
    run("import a2mim, timm" + BUILD)


def test_timm_before_a2mim():
    run(WHOLE_TORCHVISION + "import timm, a2mim" + BUILD)


def test_the_backbones_first_and_timm_by_a_submodule():
    run("import a2mim.backbones.xvit\nimport timm" + BUILD)


def test_importing_a2mim_alone_stays_light():
    run("import a2mim, sys; assert not {'torch', 'timm', 'a2mim.backbones'} & set(sys.modules)")


def toy_module(tmp_path, monkeypatch, name: str) -> list[str]:
    """A module on the path that says when it is executed; returns where it and others say so."""
    said = []
    (tmp_path / f"{name}.py").write_text("import sys; sys.said.append('module')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "said", said, raising=False)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return said


def test_the_action_runs_once_right_after_the_module(tmp_path, monkeypatch):
    said = toy_module(tmp_path, monkeypatch, "toy_of_import")
    compat.after_import("toy_of_import", lambda: said.append("action"))
    assert said == []
    import toy_of_import

    assert said == ["module", "action"]
    compat.after_import("toy_of_import", lambda: said.append("at once"))
    assert said == ["module", "action", "at once"]
    loader = toy_of_import.__spec__.loader
    assert loader.get_source("toy_of_import").startswith("import sys") and "exec_module" not in vars(loader)


def test_looking_for_the_module_does_not_use_up_the_action(tmp_path, monkeypatch):
    from importlib.util import find_spec

    said = toy_module(tmp_path, monkeypatch, "toy_of_search")
    compat.after_import("toy_of_search", lambda: said.append("action"))
    assert find_spec("toy_of_search") is not None and find_spec("toy_that_is_nowhere") is None
    assert said == []
    import toy_of_search  # noqa: F401

    assert said == ["module", "action"]


def test_two_actions_wait_for_one_module(tmp_path, monkeypatch):
    said = toy_module(tmp_path, monkeypatch, "toy_of_two")
    for word in ("first", "second"):
        compat.after_import("toy_of_two", lambda word=word: said.append(word))
    import toy_of_two  # noqa: F401

    assert sorted(said) == ["first", "module", "second"]


def test_a_module_that_is_nowhere_is_missing_as_ever(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    compat.after_import("toy_that_is_nowhere", lambda: None)
    try:
        import toy_that_is_nowhere  # noqa: F401
    except ModuleNotFoundError as error:
        assert error.name == "toy_that_is_nowhere"
    else:
        raise AssertionError("found")

"""Who may import whom, read from the source: the picture in CONTRIBUTING.md is enforced here."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "a2mim"
ROOMS = {"data", "engine", "evaluation", "export", "analysis", "backbones"}

# a module or room -> what of ours it may import; those not named here may import anything
ALLOWED = {
    "pixels": set(),
    "compat": set(),
    "checkpoints": set(),
    "devices": set(),
    "registry": set(),
    "backbones": set(),
    "batchnorm": set(),
    "layout": set(),
    "measure": {"layout"},
    "tracing": {"layout"},
    "sites": {"layout", "measure", "tracing"},
    "masking": {"registry"},
    "losses": {"masking", "registry"},
    "decoders": {"registry"},
    "targets": {"registry"},
    "visible_stats": {"backbones", "sites"},
    "networks": {"layout", "measure", "sites", "tracing"},
    "encoder": {"layout", "networks", "sites", "masking", "registry", "visible_stats"},
    "certificate": {"encoder", "layout", "networks"},
    "survey": {"certificate", "encoder", "layout", "losses", "mim"},
    "survey_page": {"survey"},
    "mim": {"decoders", "encoder", "losses", "masking", "pixels", "registry", "targets"},
    "data": set(),
    "foreign": {"pixels"},
    "sources": {"checkpoints", "foreign", "networks", "pixels"},
    "loading": {"checkpoints", "foreign", "networks", "sources"},
    "evaluation": {"batchnorm", "data", "devices", "encoder", "layout", "loading", "pixels", "sites"},
    "export": {
        *("batchnorm", "compat", "data", "devices", "encoder", "evaluation", "layout", "loading", "networks", "pixels"),
    },
    "analysis": {"data", "encoder", "evaluation", "loading", "pixels"},
    "engine": {
        *("analysis", "batchnorm", "checkpoints", "data", "devices", "encoder", "evaluation", "export"),
        *("loading", "mim", "pixels", "registry", "sites"),
    },
    "embedding": {"batchnorm", "data", "evaluation"},
    "commands": {"embedding", "data", "engine", "evaluation", "export", "certificate"},
    "cli": {"commands", "data"},
    "__init__": {"compat"},
}
# a library -> the rooms that may import it
DOORS = {
    "webdataset": {"data"},
    "fsspec": {"data"},
    "urllib3": {"data"},
    "simplejpeg": {"data"},
    "PIL": {"data", "export"},
    "tifffile": {"data"},
    "mmengine.runner": {"engine"},
    "mmengine.hooks": {"engine"},
    "mmcv": {"data", "analysis"},
    "timm.optim": {"engine", "evaluation"},
    "timm.scheduler": {"engine"},
}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """Dotted names of everything that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path):
    room = room_of(path)
    assert room in ALLOWED, f"{room} has no line in the table of this test"
    own = {name.split(".")[1] for name in imports_of(path) if name.startswith("a2mim.")}
    own = {name for name in own if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}
    assert own - {room} <= ALLOWED[room]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_library_has_one_door(path):
    for library, rooms in DOORS.items():
        used = any(name == library or name.startswith(f"{library}.") for name in imports_of(path))
        assert not used or room_of(path) in rooms, f"{library} is imported outside {rooms}"


def test_the_tables_speak_of_what_exists():
    assert set(ALLOWED) <= {room_of(path) for path in FILES}
    everything = set().union(*map(imports_of, FILES))
    for library in DOORS:
        assert any(name == library or name.startswith(f"{library}.") for name in everything), library


def test_the_tree_in_contributing_names_every_module_and_room():
    tree = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## The tree")[1].split("\n## ")[0]
    named = {name.rstrip("/").removesuffix(".py") for name in re.findall(r"`(\w+(?:\.py|/))`", tree)}
    assert {room_of(path) for path in FILES} - {"__init__"} <= named


def test_tools_are_thin():
    for path in sorted((PACKAGE.parent / "tools").glob("*.py")):
        assert len(path.read_text().splitlines()) <= 40, path

"""Who may import whom, read from the source: the picture in CONTRIBUTING.md is enforced here."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "a2mim"

# module or room -> what it may import of ours; CONTRIBUTING.md shows the same table
ALLOWED = {
    "pixels": set(),
    "compat": set(),
    "checkpoints": {"files"},
    "devices": set(),
    "processes": {"devices"},
    "files": set(),
    "text": set(),
    "registry": {"text"},
    "backbones": set(),
    "batchnorm": set(),
    "masking": {"registry"},
    "losses": {"masking", "registry"},
    "decoders": {"masking", "registry"},
    "targets": {"batchnorm", "encoder", "pixels", "registry", "weights", "wiring"},
    "wiring": {"backbones", "files", "text"},
    "encoder": {"masking", "registry", "wiring"},
    "mim": {"decoders", "encoder", "losses", "masking", "pixels", "registry", "targets", "text"},
    "check": {"encoder", "losses", "masking", "mim", "registry", "text", "wiring"},
    "data": {"files", "text"},
    "weights": {"checkpoints", "files", "pixels", "wiring"},
    "loading": {"weights"},
    "protocols": {"text"},
    "evaluation": {
        *("batchnorm", "data", "devices", "encoder", "files", "pixels", "processes", "protocols", "text", "weights"),
        "wiring",
    },
    "export": {
        "batchnorm",
        "compat",
        "data",
        "devices",
        "encoder",
        "evaluation",
        "files",
        "pixels",
        "text",
        "weights",
        "wiring",
    },
    "analysis": {
        *("batchnorm", "data", "devices", "encoder", "evaluation", "files", "pixels", "text", "weights", "wiring"),
    },
    "engine": {
        *("analysis", "batchnorm", "checkpoints", "data", "devices", "encoder", "evaluation", "export", "files"),
        *(
            "compat",
            "mim",
            "pixels",
            "processes",
            "protocols",
            "registry",
            "report",
            "targets",
            "text",
            "weights",
            "wiring",
        ),
    },
    "report": {"files", "protocols", "text"},
    "embedding": {"batchnorm", "data", "evaluation", "files", "processes", "text"},
    "commands": {
        "analysis",
        "check",
        "data",
        "embedding",
        "engine",
        "evaluation",
        "export",
        "files",
        "processes",
        "protocols",
        "report",
        "text",
    },
    "cli": {"commands", "data", "engine", "files", "processes", "text"},
    # the public names; when it runs it imports compat alone, see test_public.py
    "__init__": {
        *("compat", "data", "embedding", "encoder", "engine", "evaluation", "export", "mim", "report", "weights"),
    },
}
# a library -> the rooms that may import it
DOORS = {
    "webdataset": {"data"},
    "fsspec": {"data"},
    "urllib3": {"data"},
    "simplejpeg": {"data"},
    "PIL": {"data", "evaluation", "export", "report"},
    "jinja2": {"export", "report"},
    "matplotlib": {"report"},
    "tifffile": {"data"},
    "mmengine.runner": {"engine"},
    "mmengine.hooks": {"engine"},
    "mmcv": {"data", "analysis"},
    "pydantic": {"engine"},
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


def name_of(path):
    """The dotted name of a module; a package is named as its folder."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def circles_of(edges):
    """The strongly connected parts of a graph that have more than one member, by Tarjan's algorithm."""
    number, low, stack, found = {}, {}, [], []

    def visit(node):
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in edges[node]:
            if other not in number:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == number[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            found.extend([sorted(part)] if len(part) > 1 else [])

    for node in edges:
        if node not in number:
            visit(node)
    return found


def import_graph():
    """Module -> the modules of ours that it imports; a name that is a module counts as that module, not its package."""
    modules = {name_of(path): path for path in FILES}
    graph = {}
    for name, path in modules.items():
        wanted = {full if full in modules else full.rpartition(".")[0] for full in imports_of(path)}
        graph[name] = (wanted & set(modules)) - {name, "a2mim"}
    return graph


def test_no_module_imports_itself_over_others():
    assert circles_of(import_graph()) == []


def test_a_circle_is_found():
    assert circles_of({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_no_file_name_stands_twice_in_a_room():
    for room in PACKAGE.iterdir():
        names = [path.name for path in room.rglob("*.py") if path.name != "__init__.py"]
        assert len(names) == len(set(names)), room


def test_the_tables_speak_of_what_exists():
    assert set(ALLOWED) <= {room_of(path) for path in FILES}
    everything = set().union(*map(imports_of, FILES))
    for library in DOORS:
        assert any(name == library or name.startswith(f"{library}.") for name in everything), library


def test_the_tree_in_contributing_names_every_module_and_room():
    tree = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## The tree")[1].split("\n## ")[0]
    named = {name.rstrip("/").removesuffix(".py") for name in re.findall(r"`(\w+(?:\.py|/))`", tree)}
    assert {room_of(path) for path in FILES} - {"__init__"} <= named


def test_the_package_has_few_names_at_its_top():
    assert len({room_of(path) for path in FILES} - {"__init__"}) <= 30


def test_contributing_shows_the_table_of_imports():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text.split("## Who may import whom")[1].split("\n## ")[0], re.M)
    shown = {room: set() if names == "nothing" else set(names.split(", ")) for room, names in rows}
    assert shown == {room: names for room, names in ALLOWED.items() if room != "__init__"}


def test_tools_are_thin():
    for path in sorted((PACKAGE.parent / "tools").glob("*.py")):
        if path.name == "fuzz.py":  # no command: it is of the checkout alone
            continue
        assert len(path.read_text().splitlines()) <= 40, path

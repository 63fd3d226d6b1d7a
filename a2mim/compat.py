"""Repairs for faults of other packages.

torchvision: the wheel that pip pairs with a CPU build of torch is compiled for CUDA, so its operators do not load. Its
Python code registers a fake kernel for one of them (`torchvision::nms`). Then `import torchvision`, and so `import
timm` and mmengine's environment report, fails with "operator torchvision::nms does not exist". If the missing schemas
are declared first, the import succeeds. Calling such an operator still fails, but a2mim calls none.

timm: it has no entry points for models of other packages, so an import of a2mim registers ours, directly after timm's
own import.
"""

import contextlib
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list = []  # torch drops a declaration when its Library object is garbage-collected


class _TorchvisionFinder:
    """Repairs torchvision when it is imported. An earlier repair would make every `--help` import torch."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision":
            declare_missing_operators()
        return None  # the usual finders take over


def mend_torchvision_when_imported() -> None:
    """Idempotent; does nothing if torchvision is imported already."""
    if "torchvision" not in sys.modules and _TorchvisionFinder not in sys.meta_path:
        sys.meta_path.insert(0, _TorchvisionFinder)


class _AfterImport:
    """A finder that returns what later finders return, and runs `action` after the module was executed."""

    def __init__(self, name: str, action: Callable[[], object]):
        self.name, self.action = name, action

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in behind)), None)
        if spec is not None and spec.loader is not None:
            # Set on the loader itself, so that its other methods (sources, resources) keep working.
            loader, execute = spec.loader, spec.loader.exec_module

            def execute_and_act(module):
                vars(loader).pop("exec_module", None)
                execute(module)
                self.action()

            vars(loader)["exec_module"] = execute_and_act
        return spec


def after_import(name: str, action: Callable[[], object]) -> None:
    """Runs `action` when the top-level module `name` has been imported; at once if it is imported already."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _AfterImport(name, action))


def torchvision_needs_mending() -> bool:
    """True if plain `import timm` would fail here: torchvision was imported and its operators had to be declared."""
    return bool(_libraries)


def declare_missing_operators() -> None:
    """Declares torchvision's operator schemas if its compiled library does not."""
    import torch

    spec = PathFinder.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    for library in folder.glob("_C*.so") if folder else ():
        with contextlib.suppress(OSError):  # compiled for another torch: the case that is repaired below
            torch.ops.load_library(library)
    for operator, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, operator):
            declared = torch.library.Library("torchvision", "FRAGMENT")
            declared.define(schema)
            _libraries.append(declared)

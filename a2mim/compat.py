"""What third parties break, mended in one place.

torchvision: the wheel that pip pairs with a CPU build of torch is compiled for CUDA. Its operators do not load, its
Python code registers a fake kernel for one of them (`torchvision::nms`) and `import torchvision`, hence `import timm`
and mmengine's environment report, dies with "operator torchvision::nms does not exist". Declaring the missing schemas
first lets the import pass; calling such an operator still fails, and nothing here calls one.

timm: it has no entry points for other packages' models, so they are registered by an import of ours, right after its
own.
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
_libraries: list = []  # torch forgets a declaration when its Library object is collected


class _TorchvisionFinder:
    """Mends torchvision at the moment somebody imports it: doing it earlier would cost every `--help` an import of
    torch.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision":
            declare_missing_operators()
        return None  # the usual finders take over


def mend_torchvision_when_imported() -> None:
    """Idempotent; does nothing where torchvision is imported already."""
    if "torchvision" not in sys.modules and _TorchvisionFinder not in sys.meta_path:
        sys.meta_path.insert(0, _TorchvisionFinder)


class _AfterImport:
    """A finder that finds what those behind it find, and has `action` run once the module has been executed."""

    def __init__(self, name: str, action: Callable[[], object]):
        self.name, self.action = name, action

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in behind)), None)
        if spec is not None and spec.loader is not None:
            # On the loader itself, which keeps all its other abilities (sources, resources).
            loader, execute = spec.loader, spec.loader.exec_module

            def execute_and_act(module):
                vars(loader).pop("exec_module", None)
                execute(module)
                self.action()

            loader.exec_module = execute_and_act
        return spec


def after_import(name: str, action: Callable[[], object]) -> None:
    """Runs `action` as soon as the top-level module `name` is imported: at once where it is."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _AfterImport(name, action))


def torchvision_needs_mending() -> bool:
    """Whether plain `import timm` would die here: torchvision was imported, and its operators had to be declared."""
    return bool(_libraries)


def declare_missing_operators() -> None:
    """Declares torchvision's operator schemas unless its compiled library brings them."""
    import torch

    spec = PathFinder.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    for library in folder.glob("_C*.so") if folder else ():
        with contextlib.suppress(OSError):  # compiled for another torch: exactly the case that is mended below
            torch.ops.load_library(library)
    for operator, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, operator):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(schema)
            _libraries.append(library)

"""a2mim: masked-image-modelling pre-training for any architecture.

Importing this module imports neither torch nor timm, so that `--help` and a mistyped config answer at once;
the names below are resolved when they are first used, and our backbones join timm's when timm is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from a2mim import compat

if TYPE_CHECKING:
    # what an editor completes and mypy checks: the names of _PUBLIC and _ROOMS, from where they are defined
    from a2mim.data.access import Access as Access
    from a2mim.data.sources import open_dataset as open_dataset
    from a2mim.embedding.run import embed as embed
    from a2mim.encoder import MaskedEncoder as MaskedEncoder
    from a2mim.engine.rules import recipe_for as recipe_for
    from a2mim.engine.run import finetune as finetune
    from a2mim.engine.run import pretrain as pretrain
    from a2mim.engine.run import refine as refine
    from a2mim.evaluation.compare import compare as compare
    from a2mim.evaluation.evaluate import evaluate as evaluate
    from a2mim.evaluation.knn import knn as knn
    from a2mim.evaluation.linear import linear_probe as linear_probe
    from a2mim.export.exporting import export as export
    from a2mim.mim import MIM as MIM
    from a2mim.report.page import write_report as write_report
    from a2mim.weights.loading import load_encoder as load_encoder

__version__ = "0.2.0"

_PUBLIC = {
    "Access": "a2mim.data.access",
    "MIM": "a2mim.mim",
    "MaskedEncoder": "a2mim.encoder",
    "compare": "a2mim.evaluation",
    "embed": "a2mim.embedding",
    "evaluate": "a2mim.evaluation",
    "finetune": "a2mim.engine.run",
    "knn": "a2mim.evaluation",
    "linear_probe": "a2mim.evaluation",
    "load_encoder": "a2mim.loading",
    "open_dataset": "a2mim.data",
    "pretrain": "a2mim.engine.run",
    "recipe_for": "a2mim.engine.rules",
    "refine": "a2mim.engine.run",
    "write_report": "a2mim.report",
}
_ROOMS = ("export",)  # packages that can be called: a2mim.export(run, to=["timm"], out_dir="exported")
__all__ = [
    *("MIM", "Access", "MaskedEncoder", "compare", "embed", "evaluate", "export", "finetune", "knn", "linear_probe"),
    *("load_encoder", "open_dataset", "pretrain", "recipe_for", "refine", "write_report"),
]

compat.mend_torchvision_when_imported()
compat.after_import("timm", lambda: import_module("a2mim.backbones"))


def __dir__() -> list[str]:
    """The public names, and those that Python itself gives a module."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _ROOMS:
        return import_module(f"a2mim.{name}")
    raise AttributeError(f"module 'a2mim' has no attribute {name!r}")

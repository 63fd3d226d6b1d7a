"""a2mim: masked-image-modelling pre-training for any architecture.

Importing this module imports neither torch nor timm, so that `--help` and a mistyped config answer at once;
the names below are resolved when they are first used, and our backbones join timm's when timm is imported.
"""

from importlib import import_module

from a2mim import compat

__version__ = "0.1.0"

_PUBLIC = {
    "Access": "a2mim.data.access",
    "MIM": "a2mim.mim",
    "MaskedEncoder": "a2mim.encoder",
    "open_dataset": "a2mim.data",
    "finetune": "a2mim.engine.run",
    "pretrain": "a2mim.engine.run",
}
__all__ = ["MIM", "Access", "MaskedEncoder", "finetune", "open_dataset", "pretrain"]

compat.mend_torchvision_when_imported()
compat.after_import("timm", lambda: import_module("a2mim.backbones"))


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'a2mim' has no attribute {name!r}")

"""Exports encoders for other libraries, each with a receipt: its target loads it in a fresh process, and compares."""

import sys
from types import ModuleType

from a2mim.export.exporting import check_possible, export, export_timm_folder, prove_further
from a2mim.export.target import ExportError
from a2mim.export.targets import TARGETS, check_targets

__all__ = [
    "TARGETS",
    "ExportError",
    "check_possible",
    "check_targets",
    "export",
    "export_timm_folder",
    "prove_further",
]


class _CallableRoom(ModuleType):
    """Lets `a2mim.export(run, to=["timm"])` be called, although `a2mim.export` is this package."""

    def __call__(self, *arguments, **keywords) -> list[dict]:
        return export(*arguments, **keywords)


sys.modules[__name__].__class__ = _CallableRoom

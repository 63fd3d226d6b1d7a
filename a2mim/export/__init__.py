"""Encoders where others load them, each with a receipt: loaded back in a fresh process by its target, and compared."""

from a2mim.export.handover import export, export_timm_folder
from a2mim.export.target import ExportError
from a2mim.export.targets import TARGETS, check_targets

__all__ = ["TARGETS", "ExportError", "check_targets", "export", "export_timm_folder"]

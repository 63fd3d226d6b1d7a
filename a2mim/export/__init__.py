"""Encoders where others load them, each with a receipt: loaded back in a fresh process by its target, and compared."""

from a2mim.export.receipt import ExportError
from a2mim.export.targets import TARGETS, check_targets, export, export_timm_folder

__all__ = ["TARGETS", "ExportError", "check_targets", "export", "export_timm_folder"]

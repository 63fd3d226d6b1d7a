"""The public door to weights: `from a2mim.loading import load_encoder`. The work is done in `a2mim.weights.loading`."""

from a2mim.weights.loading import LoadReport, describe_report, load_encoder, load_reported

__all__ = ["LoadReport", "describe_report", "load_encoder", "load_reported"]

"""Frozen features once, then judged by named protocols: k-NN and linear probes, with intervals."""

from a2mim.evaluation.features import extract_features
from a2mim.evaluation.intervals import paired_difference, verdict, wilson_interval
from a2mim.evaluation.judge import judge
from a2mim.evaluation.knn import knn
from a2mim.evaluation.linear import hold_out, linear_probe
from a2mim.evaluation.linear_dino import linear_probe_dino

__all__ = [
    "extract_features",
    "hold_out",
    "judge",
    "knn",
    "linear_probe",
    "linear_probe_dino",
    "paired_difference",
    "verdict",
    "wilson_interval",
]

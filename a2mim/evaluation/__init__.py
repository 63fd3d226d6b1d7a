"""Computes frozen features once, judges them by named protocols: k-NN, linear and attentive probes, with intervals."""

from a2mim.evaluation.attentive_probe import attentive_probe
from a2mim.evaluation.compare import compare
from a2mim.evaluation.evaluate import evaluate
from a2mim.evaluation.features import extract_features
from a2mim.evaluation.judge import judge
from a2mim.evaluation.knn import knn
from a2mim.evaluation.linear import hold_out, linear_probe
from a2mim.evaluation.linear_dino import linear_probe_dino
from a2mim.evaluation.logreg import logreg
from a2mim.evaluation.results import read_results, write_result
from a2mim.protocols import protocol_names, read_protocol
from a2mim.protocols.intervals import (
    Difference,
    bootstrap_interval,
    difference,
    paired_difference,
    verdict,
    wilson_interval,
)

__all__ = [
    "Difference",
    "attentive_probe",
    "bootstrap_interval",
    "compare",
    "difference",
    "evaluate",
    "extract_features",
    "hold_out",
    "judge",
    "knn",
    "linear_probe",
    "linear_probe_dino",
    "logreg",
    "paired_difference",
    "protocol_names",
    "read_protocol",
    "read_results",
    "verdict",
    "wilson_interval",
    "write_result",
]

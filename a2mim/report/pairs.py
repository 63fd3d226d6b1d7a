"""Which of two runs is better: the difference on the same test images, with its paired interval, or why nothing can be
said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from a2mim.protocols.intervals import Difference, difference
from a2mim.report.records import RunRecord

# Protocols of the judgement that ends a pre-training, by how much each shows of masked modelling.
_PROBES = {"run-attentive": "attentive probe", "run-linear": "linear probe", "run-knn": "k-NN"}
_TUNED = "accuracy after fine-tuning"


@dataclass(frozen=True)
class Pair:
    """What one protocol says of two runs.

    Args:
        difference: second minus first, on the test images that both were judged on; None: they cannot be paired.
        note: why not, or what else differs between the two judgements; may be empty.
    """

    difference: Difference | None
    note: str


def comparisons(runs: Sequence[RunRecord]) -> list[str]:
    """Sentences on each later run against the first; none for one run."""
    return [sentence for run in runs[1:] for sentence in comparison(runs[0], run)]


def comparison(first: RunRecord, second: RunRecord) -> list[str]:
    """Sentences, the most important first: which run is better and by how much, or why that cannot be said."""
    pairs = [_pair(*both) for both in _shared(first, second)]
    found = [(pair.difference, pair.note) for pair in pairs if pair.difference is not None]
    if not found:
        why = pairs[0].note if pairs else _why_not(first, second)
        return [f"Whether {first.name} or {second.name} is better cannot be said: {why}."]
    notes = [f"Their judgements differ in {note}." for note in dict.fromkeys(note for _, note in found) if note]
    lead = " ".join([_sentence(first, second, found[0][0]), *notes])
    return [lead, *(_further(first, second, one) for one, _ in found[1:])]


def _pair(name: str, before: dict[str, Any], after: dict[str, Any]) -> Pair:
    tests = [result.get("test_fingerprint", result.get("data_fingerprint")) for result in (before, after)]
    answers = [np.frombuffer(result["correct"].encode(), np.uint8) for result in (before, after)]
    if tests[0] != tests[1] or len(answers[0]) != len(answers[1]):
        return Pair(None, "they were not judged on the same test images")
    both = (answers[0] != ord("-")) & (answers[1] != ord("-"))
    if not both.any():
        return Pair(None, "no test image was judged in both")
    return Pair(difference(name, *(one[both] == ord("1") for one in answers)), _other(before, after))


def _other(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What differs between two judgements on the same test images; at most three constants."""
    told = []
    if before.get("protocol_hash") != after.get("protocol_hash"):
        one, other = before["constants"], after["constants"]
        keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)][:3]
        told += [f"{key} ({_short(one.get(key))} and {_short(other.get(key))})" for key in keys]
    if before.get("data_fingerprint") != after.get("data_fingerprint"):
        told.append("the training images")
    return ", ".join(told)


def _sentence(first: RunRecord, second: RunRecord, one: Difference) -> str:
    better, worse = (second, first) if one.word == "gain" else (first, second)
    sign = 1 if better is second else -1
    low, high = sorted((sign * one.low, sign * one.high))
    lead = (
        f"{sign * one.points:+.1f} points, paired 95 % interval {low:+.1f} to {high:+.1f}, {one.n_test:,} test images"
    )
    if one.word == "none":
        return (
            f"Neither is shown to be better: {second.name} against {first.name}, {one.name} {one.points:+.1f} points"
            f" (paired 95 % interval {one.low:+.1f} to {one.high:+.1f}, {one.n_test:,} test images)."
        )
    return f"{better.name} is better than {worse.name}: {one.name} {lead}."


def _further(first: RunRecord, second: RunRecord, one: Difference) -> str:
    told = {"gain": f"{second.name} is better", "loss": f"{first.name} is better", "none": "no difference is shown"}
    return (
        f"{one.name}: {told[one.word]} ({second.name} minus {first.name}: {one.points:+.1f} points,"
        f" {one.low:+.1f} to {one.high:+.1f})."
    )


def _shared(first: RunRecord, second: RunRecord) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, result of the first, result of the second) of each protocol of both; of several results, the newest."""
    mine, other = (
        {_TUNED if "best_epoch" in one else str(one.get("protocol")): one for one in run.results}
        for run in (first, second)
    )
    known = [name for name in _PROBES if name in mine] + [name for name in mine if name not in _PROBES]
    return [(_PROBES.get(name, name), mine[name], other[name]) for name in known if name in other]


def _why_not(first: RunRecord, second: RunRecord) -> str:
    for run in (first, second):
        if not run.results:
            ended = "" if run.status == "finished" else ", because it did not finish"
            return f"{run.name} was not judged on labelled test images{ended}"
    used = [" and ".join(str(one.get("protocol")) for one in run.results) for run in (first, second)]
    return f"they were judged by different protocols ({used[0]}; {used[1]})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"

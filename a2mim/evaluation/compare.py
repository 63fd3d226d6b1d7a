"""Compares two results on the same test images: gain, loss, or no visible difference."""

from __future__ import annotations

import warnings
from dataclasses import asdict

import torch

from a2mim.evaluation.results import unpack
from a2mim.evaluation.shown import Sentence
from a2mim.protocols.intervals import Difference, bootstrap_mean, difference
from a2mim.text import shortened

MUST_AGREE = {"protocol": "protocols", "protocol_hash": "constants", "data_fingerprint": "data"}


def compare(first: dict, second: dict, anyway: bool = False) -> Sentence:
    """One plain sentence: gain, loss, or no difference that these test images can show, with its paired interval.

    Args:
        first, second: results, as `evaluate` returns them and `read_results` reads them; the sentence states second
            minus first.
        anyway: compare although protocol, constants or training data differ; the sentence then says so.

    Returns:
        a str whose `facts` hold the numbers: points, low, high, word ("gain", "loss" or "none") and n_test.

    Raises:
        ValueError: they differ and `anyway` is not given, or they have no test image in common.

    Examples:
        >>> (result,) = a2mim.evaluate("runs/tiny", ["dino-knn"], "photographs")
        >>> "no difference" in a2mim.compare(result, result)
        True
    """
    different = [what for key, what in MUST_AGREE.items() if first[key] != second[key]]
    names = [f"{named(r)} of {r['encoder']}" for r in (first, second)]
    if different and not anyway:
        raise ValueError(
            f"{names[0]} and {names[1]} differ in their {' and '.join(different)}{_detail(first, second)}: to"
            " compare them nevertheless, add --anyway."
        )
    if "scores" in first and "scores" in second:
        return _as_sentence(_compare_scores(first, second, names), first, second, different)
    same_test = first.get("test_fingerprint", first["data_fingerprint"]) == second.get(
        "test_fingerprint", second["data_fingerprint"]
    )
    answers = [unpack(result["correct"]) for result in (first, second)]
    if not same_test or len(answers[0]) != len(answers[1]) or not len(answers[0]):
        raise ValueError(f"{names[0]} and {names[1]} were not tested on the same images: they cannot be paired.")
    both = (answers[0] >= 0) & (answers[1] >= 0)
    if not both.any():
        raise ValueError(f"{names[0]} and {names[1]} have no judged test image in common.")
    if not both.all():
        warnings.warn(f"{int((~both).sum())} of {len(both)} test images were not judged by both", stacklevel=2)
    before, after = ((a[both] == 1).to(torch.bool) for a in answers)
    change = difference(f"{names[1]} against {names[0]}", before, after)
    return _as_sentence((change.sentence(), change), first, second, different)


def _as_sentence(found: tuple[str, Difference], first: dict, second: dict, different: list[str]) -> Sentence:
    told = f" They differ in their {' and '.join(different)}{_detail(first, second)}." if different else ""
    return Sentence(found[0] + told, asdict(found[1]))


def named(result: dict) -> str:
    """Name of the protocol; for low-shot also the label subset and the classifier."""
    constants = result["constants"]
    if "subset" not in constants:
        return result["protocol"]
    subset = str(constants["subset"])
    labels = f"{subset} of labels" if "%" in subset else f"{subset} labels a class"
    return f"{result['protocol']} ({labels}, seed {constants.get('subset_seed', 0)}, {constants.get('classifier')})"


def _compare_scores(first: dict, second: dict, names: list[str]) -> tuple[str, Difference]:
    """Compares dense protocols: one score in percent per object or query, paired by name. (sentence, numbers)."""
    shared = [name for name in first["scores"] if name in second["scores"]]
    if not shared:
        raise ValueError(f"{names[0]} and {names[1]} have no object or query in common.")
    change = [second["scores"][name] - first["scores"][name] for name in shared]
    low, high = bootstrap_mean(change)
    word = "none" if low <= 0 <= high else "gain" if low > 0 else "loss"
    what = f"no difference that {len(shared)} of them can show" if word == "none" else f"a {word}"
    mean, name = sum(change) / len(change), f"{names[1]} against {names[0]}"
    sentence = f"{name}: {what} ({mean:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f})."
    return sentence, Difference(name, mean, low, high, word, len(shared))


def compare_all(results: list[dict], anyway: bool = False) -> list[Sentence]:
    """Every later result of a protocol against the first of that protocol. With `anyway`, a result that is alone with
    its protocol is held against the first of all.

    Results without answers or scores of single images (those of label-free and robustness) are skipped.

    Raises:
        ValueError: there is nothing to pair.
    """
    sentences = []
    results = [result for result in results if result["correct"] or "scores" in result]
    for i, result in enumerate(results):
        earlier = [other for other in results[:i] if _group(other) == _group(result)]
        alone = sum(_group(other) == _group(result) for other in results) == 1
        earlier = earlier or (results[: min(i, 1)] if anyway and alone else [])
        if earlier:
            sentences.append(compare(earlier[0], result, anyway))
    if not sentences:
        names = dict.fromkeys(f"{shortened(named(r))} of {shortened(r['encoder'])}" for r in results)
        told = ", ".join(names) or "none"
        raise ValueError(f"nothing can be paired among these results: {told}; give two of one protocol, or --anyway.")
    return sentences


def _group(result: dict) -> tuple:
    """Key of results that are paired: the protocol and, for low-shot, the subset and the classifier."""
    constants = result["constants"]
    return result["protocol"], constants.get("subset"), constants.get("subset_seed"), constants.get("classifier")


def _detail(first: dict, second: dict) -> str:
    """The constants that differ, at most three."""
    keys = sorted({*first["constants"], *second["constants"]})
    pairs = [(key, *(r["constants"].get(key) for r in (first, second))) for key in keys]
    told = [f"{key} {a} and {b}" for key, a, b in pairs if a != b][:3]
    return f" ({'; '.join(told)})" if told else ""

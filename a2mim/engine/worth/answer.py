"""From the cells to the answer: comparisons, a sentence each, a table, figures. No image is looked at here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from a2mim.engine.worth.budget import SHARES
from a2mim.engine.worth.cells import Arm
from a2mim.engine.worth.verdict import Effect, Verdict, decide, needed
from a2mim.evaluation.results import unpack

MODES = {"frozen": "frozen, attentive probe", "finetune": "fine-tuned"}


def cell_name(mode: str, arm: Arm, share: str, seed: int) -> str:
    """The cell's name, which is also the name of its files."""
    return f"seed{seed}-{slug(arm.name)}-{mode}-{share.rstrip('%')}"


def slug(text: str) -> str:
    """The text in letters, digits and hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in text).split())


def answers_of(cells: dict[str, dict], arm: Arm, mode: str, share: str, seeds: list[int]) -> np.ndarray:
    """(seeds, test images): 1 right, 0 wrong, -1 not judged."""
    return np.stack([unpack(cells[cell_name(mode, arm, share, seed)]["correct"]).numpy() for seed in seeds])


def compare(cells: dict[str, dict], before: Arm, after: Arm, seeds: list[int], chance: float, worth: float) -> Verdict:
    """Two arms over both modes and both shares of the labels, paired image by image."""
    pairs, trained = {}, []
    for share in SHARES:
        for mode, words in MODES.items():
            a, b = (answers_of(cells, arm, mode, share, seeds) for arm in (before, after))
            judged = (a >= 0).all(axis=0) & (b >= 0).all(axis=0)
            name = f"{words}, {share} of the labels"
            pairs[name] = a[:, judged], b[:, judged]
            trained += [name] if share == SHARES[-1] else []
    return decide(pairs, chance, worth, tuple(trained))


def sentence(verdict: Verdict, before: Arm, after: Arm, minutes: float, facts: dict, worth: float) -> str:
    """The answer, by how much, how sure, at what cost, and what would change it."""
    best, where = verdict.effects[verdict.strongest], f"when {verdict.strongest}"
    weakest = min(verdict.effects, key=lambda name: verdict.effects[name].sure_high)
    worst = f"{_told(verdict.effects[weakest])} when {weakest}"
    subject = f"{_subject(after)} (against: {before.name})"
    cost = f"at {minutes:.1f} minutes of pre-training a seed" if after.pretrained else "at no cost here"
    if verdict.reason == "gain":
        told = f"{subject} helps: {_told(best)} {where}"
    elif verdict.reason == "loss":
        told = f"{subject} harms: {worst}, and no gain elsewhere is sure"
    elif verdict.reason == "both":
        told = f"{subject} depends on the use: {_told(best)} {where}, {worst}"
    elif verdict.reason == "nothing learned":
        guess = f"always answering the commonest class ({facts['commonest']:.1f} %)"
        told = f"{subject} does not help here: the network still beats {guess} by less than 5 points"
        told += f"; the most favourable difference is {_told(best)}"
    elif verdict.reason == "no gain worth having":
        told = f"{subject} does not help here: no gain reaches {worth:g} points; the largest is {_told(best)}"
    else:
        told = f"Cannot tell whether {_lower(subject)} helps ({verdict.reason}): the most favourable"
        told += f" difference is {_told(best)} {where}"
    return f"{told}; {cost}. {change(verdict, after, facts, worth)}"


def _subject(arm: Arm) -> str:
    if not arm.pretrained:
        return "Starting from the given weights"
    return "Pre-training the given weights further on these images" if arm.start else "Pre-training on these images"


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _told(effect: Effect) -> str:
    seeds = "1 seed" if effect.seeds == 1 else f"{effect.seeds} seeds"
    return (
        f"{effect.points:+.1f} points, 95 % interval {effect.low:+.1f} to {effect.high:+.1f} over {seeds} and"
        f" {effect.images:,} test images"
    )


def change(verdict: Verdict, after: Arm, facts: dict, worth: float) -> str:
    """What would most likely change the answer."""
    effect = verdict.effects[verdict.strongest]
    size = max(worth, abs(effect.points))
    wanted = needed(effect, size)
    if verdict.reason == "too few seeds":
        return "What would change this: more --minutes, for at least two seeds."
    if verdict.reason == "nothing learned":
        return "What would change this: labels that depend on what the images show, larger images, or more labels."
    if verdict.word != "cannot tell":
        longer = "longer pre-training (more --minutes), more unlabelled images" if after.pretrained else "other weights"
        return f"What could change this: {longer}, or another number of labels ({facts['labelled']:,} here)."
    by_images = effect.image_error >= effect.seed_error
    if by_images or verdict.reason == "too few test images":
        return (
            f"What would change this: more labelled images to test on (about {wanted['test_images']:,} show"
            f" {size:.0f} points; there are {effect.images:,}), then more --minutes."
        )
    return f"What would change this: more --minutes (about {wanted['seeds']:,} seeds make {size:.0f} points sure)."


def table(cells: dict[str, dict], arms: list[Arm], seeds: list[int]) -> list[dict]:
    """One row for each arm, mode and share: the mean over seeds, and each seed's top-1 in percent."""
    rows = []
    for share in SHARES:
        for mode, words in MODES.items():
            for arm in arms:
                found = [cells[cell_name(mode, arm, share, seed)] for seed in seeds]
                top1 = [100 * float((unpack(cell["correct"]) == 1).double().mean()) for cell in found]
                rows.append(
                    {"labels": share, "images": found[0]["images"], "use": words, "arm": arm.name}
                    | {
                        "top1": float(np.mean(top1)),
                        "seeds": top1,
                        "seconds": float(np.mean([c["seconds"] for c in found])),
                    }
                )
    return rows


def table_lines(rows: list[dict]) -> list[str]:
    """The table as text."""
    wide = max(len(row["arm"]) for row in rows)
    lines = [f"  {'labels':>6}  {'images':>6}  {'use':<24}  {'begun':<{wide}}  top-1 %  each seed"]
    for row in rows:
        each = " ".join(f"{value:.1f}" for value in row["seeds"])
        named = f"{row['labels']:>6}  {row['images']:>6}  {row['use']:<24}  {row['arm']:<{wide}}"
        lines.append(f"  {named}  {row['top1']:7.1f}  {each}")
    return lines


def verdict_facts(verdict: Verdict, before: Arm, after: Arm, said: str) -> dict[str, Any]:
    """For results.json; infinite ends of intervals as null."""
    effects = {
        name: {k: v if np.isfinite(v) else None for k, v in asdict(e).items()} for name, e in verdict.effects.items()
    }
    return {
        "before": before.name,
        "after": after.name,
        "answer": verdict.word,
        "reason": verdict.reason,
        "strongest": verdict.strongest,
        "sentence": said,
        "effects": effects,
    }


def figures(curves: dict[str, list[dict]], judged: list[dict]) -> list[dict]:
    """For the report: the learning curve, and the gains with their intervals."""
    found = []
    if curves:
        lines = [
            {
                "label": name,
                "x": [point["minutes"] for point in points],
                "y": [point["top1"] for point in points],
                **{key: [point[key] for point in points] for key in ("low", "high")},
            }
            for name, points in curves.items()
            if points
        ]
        found.append(
            {
                "title": "Frozen features over minutes of pre-training",
                "x_label": "minutes of pre-training (seed 0)",
                "y_label": "top-1 of the attentive probe, %",
                "message": "All labels. A curve that still rises at its end asks for more minutes.",
                "lines": lines,
            }
        )
    for one in judged:
        shown = list(one["effects"].values())
        found.append(
            {
                "title": f"{one['after']} against {one['before']}",
                "x_label": "; ".join(f"{i + 1}: {name}" for i, name in enumerate(one["effects"])),
                "y_label": "points of top-1",
                "message": one["sentence"],
                "lines": [
                    {
                        "label": "gain with its 95 % interval",
                        "x": list(range(1, len(shown) + 1)),
                        **{
                            key: [effect[of] for effect in shown]
                            for key, of in (("y", "points"), ("low", "low"), ("high", "high"))
                        },
                    }
                ],
            }
        )
    return found

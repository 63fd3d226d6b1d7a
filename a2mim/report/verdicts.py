"""What a run comes to, in words: one sentence for everybody, then one line each on data, learning, features, speed and
export. Every line shows the rule that it follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from a2mim.report.records import Difference, RunRecord
from a2mim.report.summary import is_number

_NOT_YET = "Whether it helped is not known: that is measured at the end of a run."
_LINES = 5  # of the log, whose mean the verdict on the loss takes: single batches differ by more than 10 %
GOOD, LOOK, BAD = "good", "look here", "bad"


@dataclass(frozen=True)
class Verdict:
    """One line: what it is about, how it stands ("good", "look here", "bad"), why, and by which rule."""

    about: str
    level: str
    says: str
    rule: str


def headline(run: RunRecord) -> str:
    """What was trained on what, for how long, and whether it helped."""
    steps, of = run.steps
    taken = f"{steps:,} of {of:,} steps" if of and steps != of else f"{steps:,} steps"
    images = run.summary.get("data", {}).get("images")
    done = {"finetune": "fine-tuned", "refine": "refined"}.get(run.command, "pre-trained")
    what, where = f"{architecture(run)} was {done}", f" on {images:,} images" if images else ""
    if run.status == "finished":
        outcome = tested(run) if run.command == "finetune" else helped(run.differences, work_of(run))
        return f"{what}{where} for {duration(run)} ({taken}). {outcome}"
    state = {
        "running": "The run is still going on",
        "stopped": "The run was stopped by a signal and has saved its state",
        "killed": "The run did not finish: it was killed, or it is still running elsewhere",
    }.get(run.status, f"The run is {run.status}")
    seconds = run.training_seconds
    time = f" in {_in_words(seconds)}" if seconds else ""
    outcome = "" if run.command == "finetune" else f" {_NOT_YET}"
    return f"{state}, after {taken}{time}: {architecture(run)}, {done}{where}.{outcome}"


def tested(run: RunRecord) -> str:
    """How well a fine-tuned classifier does on the test images."""
    result = run.summary.get("result")
    if not isinstance(result, dict) or not {"top1_last", "interval"} <= set(result):
        return "Its accuracy on test images was not measured."
    low, high = result["interval"]
    images = f" of {result['n_test']:,} images" if result.get("n_test") else ""
    return f"It answers {result['top1_last']:.1f} %{images} rightly (95 % interval {low:.1f} to {high:.1f})."


def work_of(run: RunRecord) -> str:
    """What the run did to its encoder, as the first word of a sentence."""
    return "Refinement" if run.command == "refine" else "Pre-training"


def helped(differences: list[Difference], work: str = "Pre-training") -> str:
    """Whether the work helped, by the probe that shows the most for masked modelling: attentive, linear, k-NN."""
    if not differences:
        return "Whether it helped was not measured: the run had no labelled test images."
    order = ("attentive probe", "linear probe", "k-NN")
    one = min(differences, key=lambda d: order.index(d.name) if d.name in order else len(order))
    told = f"the {one.name} went from {one.before:.1f} to {one.after:.1f} %"
    if one.points is not None:
        told += f" ({one.points:+.1f} points, 95 % interval {one.low:+.1f} to {one.high:+.1f})"
    else:
        return f"In this run {told}. It kept no paired interval, so whether that is more than chance is not known."
    words = {
        "gain": f"{work} helped",
        "loss": f"{work} made the features worse",
        "none": f"{work} showed no difference that these test images can prove",
    }
    others = [d for d in differences if d is not one and d.word not in (one.word, "none")]
    but = f" But {others[0].name} shows a {others[0].word}." if others else ""
    return f"{words.get(one.word, words['none'])}: {told}.{but}"


def architecture(run: RunRecord) -> str:
    made = run.summary.get("encoder") or run.summary.get("classifier") or {}
    name = made.get("name") or run.setting("model.encoder.name")
    return str(name or run.name)


def duration(run: RunRecord) -> str:
    seconds = run.training_seconds if run.resumed else run.summary.get("seconds")
    return _in_words(seconds) if is_number(seconds) else "an unknown time"


def _in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def verdicts(run: RunRecord) -> list[Verdict]:
    """At most five lines, of those that the run's files allow."""
    found = [_data(run), _learning(run), _representation(run), _speed(run), _export(run)]
    return [verdict for verdict in found if verdict]


def _data(run: RunRecord) -> Verdict | None:
    data = run.summary.get("data")
    if not isinstance(data, dict):
        return None
    unreadable = data.get("unreadable")
    lost = sum(unreadable.values()) if isinstance(unreadable, dict) else 0
    shards, images = len(data.get("skipped_shards") or ()), data.get("images") or 0
    rule = "good: every image and shard was read; bad: over 1 % of the images, or a whole shard, was not"
    if not lost and not shards:
        if run.status != "finished" and "unreadable" not in data:  # it is counted at the end of a run
            return _data_so_far(run)
        return Verdict("data", GOOD, f"All of the {images:,} images could be read.", rule)
    level = BAD if shards or lost > 0.01 * images else LOOK
    told = f"{lost:,} reads of unreadable images" + (f", {shards} shards left out" if shards else "")
    return Verdict("data", level, f"{told}; see the section on data.", rule)


def _data_so_far(run: RunRecord) -> Verdict:
    """On a run that did not come to its end: what its log counts."""
    counted: list[dict[str, Any]] = [line["faults"] for line in run.lines if isinstance(line.get("faults"), dict)]
    faults = counted[-1] if counted else {}
    rule = "good: no read of an image failed so far"
    if not faults:
        return Verdict("data", GOOD, "No image that was read so far was damaged or unreadable.", rule)
    told = ", ".join(f"{reason} ({many:,})" for reason, many in faults.items() if is_number(many))
    return Verdict("data", LOOK, f"Images with faults so far: {told}.", rule)


def _learning(run: RunRecord) -> Verdict | None:
    if not run.lines:
        return None
    last = run.lines[-max(1, min(_LINES, len(run.lines) // 2), len(run.lines) // 10) :]
    loss = fmean(line["loss"] for line in last)
    known = run.summary.get("loss") or {}
    logged = [line.get("baseline", known.get("baseline")) for line in last]
    baselines = [value for value in logged if is_number(value)]
    if len(baselines) < len(last) or not sum(baselines) > 0:
        falls = loss < run.lines[0]["loss"]
        rule = "good: the mean of the last losses is below the first one"
        return Verdict("learning", GOOD if falls else BAD, f"Loss {run.lines[0]['loss']:.4f} → {loss:.4f}.", rule)
    share, name = loss / fmean(baselines), known.get("baseline_name", "one colour an image")
    level = GOOD if share < 0.95 else LOOK if share < 1 or run.status != "finished" else BAD
    rule = "good: under 95 % of the loss of always answering with one colour; bad: not below it when the run ends"
    lines = f"the last {len(last)} lines of the log" if len(last) > 1 else "the last line of the log"
    told = f"The loss in {lines} is {loss:.4f}: {share:.0%} of the loss of always answering with {name}."
    return Verdict("learning", level, told, rule)


def _representation(run: RunRecord) -> Verdict | None:
    if not run.differences:
        return None
    probes = [d for d in run.differences if d.name != "k-NN"] or run.differences
    words = {d.word for d in probes}
    level = BAD if words == {"loss"} else GOOD if "gain" in words and "loss" not in words else LOOK
    told = ", ".join(f"{d.name} {d.before:.1f} → {d.after:.1f} %" for d in run.differences)
    rule = "good: a linear or attentive probe shows a gain; look here: it shows none; bad: it shows a loss"
    return Verdict("representation", level, f"{told}.", rule)


def _speed(run: RunRecord) -> Verdict | None:
    shares = [line["data_share"] for line in run.lines[1:] if is_number(line.get("data_share"))]
    if not shares:
        return None
    share, speed = sum(shares) / len(shares), run.lines[-1].get("images_per_second")
    level = GOOD if share < 0.05 else LOOK if share < 0.3 else BAD
    told = f"{share:.0%} of the time went into waiting for data" + (
        f"; {speed:.{0 if speed >= 10 else 1}f} images/s at the end" if is_number(speed) and speed else ""
    )
    return Verdict("speed", level, f"{told}.", "good: under 5 % waiting; bad: 30 % or more")


def _export(run: RunRecord) -> Verdict | None:
    if not run.receipts:
        return None
    modes = [str(receipt.get("mode")) for receipt in run.receipts]
    proven = modes.count("loaded")
    level = GOOD if proven == len(modes) else LOOK
    told = f"{proven} of {len(modes)} exports were loaded back by their target and gave the same features."
    return Verdict("export", level, told, "good: every export was loaded back and compared")

"""The tables of the page: data, exports, settings with where they come from, machine, commands to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from a2mim.report.records import RunRecord
from a2mim.report.summary import is_number

_MOST_CLASSES = 50  # that a run keeps the counts of


def data_rows(run: RunRecord) -> list[tuple[str, str]]:
    """(what, how many) of the training images, and of what could not be used."""
    data = run.summary.get("data")
    if not isinstance(data, dict):
        return []
    rows = [("training images", str(data.get("source", "not known"))), *_sizes(data.get("sizes") or {})]
    rows += _seen_by_the_network(run)
    for key, name in (
        ("duplicates", "images that stand there twice"),
        ("incomplete", "samples without an image"),
        ("damaged_but_decoded", "images that are damaged and could be decoded"),
        ("reduced_to_8_bits", "images reduced to 8 bits"),
        ("left_out_each_epoch", "images that an epoch leaves out, because they fill no batch"),
    ):
        if data.get(key):
            rows.append((name, f"{data[key]:,}"))
    rows += [(f"unreadable: {reason}", f"{n:,}") for reason, n in (data.get("unreadable") or {}).items()]
    rows += [("first of them", str(name)) for name in (data.get("first_unreadable") or ())[:5]]
    rows += [("shard left out", str(name)) for name in data.get("skipped_shards") or ()]
    return rows + _classes(data.get("class_counts") or {}) + _repeats(run)


def _sizes(sizes: dict[str, Any]) -> list[tuple[str, str]]:
    """Height and width of the images as they are stored, of those that were looked at."""
    if len(sizes) < 4:  # damaged entries were left out when the summary was read
        return []
    least, median, greatest = (
        " x ".join(f"{side:,.0f}" for side in sizes[key]) for key in ("least", "median", "greatest")
    )
    told = f"{least} px" if least == greatest else f"from {least} to {greatest} px, median {median}"
    return [("size in the data, height x width", f"{told} ({sizes['looked_at']:,} images looked at)")]


def _seen_by_the_network(run: RunRecord) -> list[tuple[str, str]]:
    """Size and channels of the images as the network gets them."""
    side, made = run.setting("data.img_size"), run.summary.get("encoder") or run.summary.get("classifier") or {}
    size = made.get("img_size") or side
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    rows = [("size in the network", f"{sides[0]} x {sides[1]} px")] if all(map(is_number, sides)) else []
    channels = made.get("in_chans")
    return [*rows, ("channels", str(channels))] if is_number(channels) else rows


def _classes(counts: dict[str, Any]) -> list[tuple[str, str]]:
    """The balance of the classes, and how many images each has."""
    if not counts:
        return []
    least, most = min(counts.values()), max(counts.values())
    told = ", ".join(f"{name} {n:,}" for name, n in counts.items())
    note = " (the largest and the smallest classes)" if len(counts) >= _MOST_CLASSES else ""
    return [("images a class", f"{least:,} to {most:,}" if least < most else f"{most:,}"), (f"of each{note}", told)]


def _repeats(run: RunRecord) -> list[tuple[str, str]]:
    """Images that repeat one another, where `a2mim analyze` or `a2mim evaluate` counted them."""
    found = run.analyses.get("duplicates") or {}
    judged = [result for result in run.results if _in_words(result.get("overlap"))]
    in_both, tested = found.get("in_both"), found.get("test")
    if in_both is None and judged:
        in_both, tested = judged[-1].get("overlap"), judged[-1].get("n_test")
    rows = [
        (f"{what} images that repeat {whom}", f"{told} of {compared:,} compared" if is_number(compared) else told)
        for what, whom, counts, compared in (
            ("training", "another one", found.get("repeated"), found.get("train")),
            ("test", "a training image", in_both, tested),
        )
        if (told := _in_words(counts))
    ]
    pairs = found.get("pairs")
    named = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2] if isinstance(pairs, list) else []
    return rows + [("equal, or nearly", f"{first} and {second}") for first, second in named[:5]]


def _in_words(counts: Any) -> str:
    """ "1 exactly, 2 nearly" of {"exact": 1, "near": 2}; "" for anything else."""
    if not isinstance(counts, dict) or not all(is_number(counts.get(kind)) for kind in ("exact", "near")):
        return ""
    return f"{counts['exact']:,} exactly, {counts['near']:,} nearly"


def export_rows(run: RunRecord) -> list[dict[str, str]]:
    """One row a receipt: target, what was proven, largest difference, date, versions."""
    rows = []
    for receipt in run.receipts:
        difference = receipt.get("largest_difference")
        versions = receipt.get("versions")
        rows.append(
            {
                "target": str(receipt.get("target", "")),
                "proven": {"loaded": "proven", "contract only": "contract only"}.get(
                    str(receipt.get("mode")), "refused"
                ),
                "difference": f"{difference:.1e}" if isinstance(difference, int | float) else "not compared",
                "date": str(receipt.get("written", ""))[:16].replace("T", " "),
                "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else "",
            }
        )
    return rows


def setting_rows(run: RunRecord) -> list[tuple[str, str, str]]:
    """(key, value, where it comes from) of every setting; empty for a run that kept none as data."""
    stated = run.summary.get("origins")
    origins = stated if isinstance(stated, dict) else {}
    return [(key, _short(value), str(origins.get(key, ""))) for key, value in flatten(run.settings or {})]


def differing(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """(key, its value in each run) of the settings that differ between several runs."""
    if len(runs) < 2:
        return []
    flat = [dict(flatten(run.settings or {})) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    values = [(key, [_short(one[key]) if key in one else "–" for one in flat]) for key in keys]
    return [(key, told) for key, told in values if len(set(told)) > 1]


def where_and_how(run: RunRecord) -> tuple[list[tuple[str, str]], list[str]]:
    """The machine and versions; and the commands that repeat the run, go on with it and use its encoder."""
    summary = run.summary
    rows = [
        (name, str(summary[key])) for key, name in (("device", "device"), ("processes", "processes")) if key in summary
    ]
    versions = summary.get("versions")
    rows += [(str(k), str(v)) for k, v in versions.items()] if isinstance(versions, dict) else []
    rows += [(str(k), str(v)) for k, v in (summary.get("machine") or {}).items()]
    request = summary.get("asked") or {}
    recipe, folder = request.get("config"), str(run.folder)
    commands = []
    if isinstance(recipe, str):
        again = ["a2mim", run.command, recipe]
        again += [str(request["source"])] if request.get("source") else []
        again += ["--data", *_words(request["data"])] if request.get("data") else []
        again += ["--laptop"] if request.get("laptop") and request.get("data") else []
        again += ["--test-data", *_words(request["test_data"])] if request.get("test_data") else []
        again += ["--seed", str(summary["seed"])] if "seed" in summary else []
        again += _typed(run)
        commands.append(shlex.join(again))
        if run.status != "finished" and any((run.folder / "checkpoints").glob("step_*.pth")):
            commands.append(shlex.join(["a2mim", run.command, recipe, "--work-dir", folder, "--resume"]))
    if run.status == "finished" and run.command == "pretrain":
        commands += [shlex.join(["a2mim", "evaluate", folder]), shlex.join(["a2mim", "export", folder, "--to", "timm"])]
    return rows, commands


def flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("a.b", value) of nested settings, in their order."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _typed(run: RunRecord) -> list[str]:
    """--cfg-options with every setting that was typed on the command line, at the start or at a resume."""
    typed = {"command line", "resume"}
    origins = run.summary.get("origins")
    keys = [key for key, origin in origins.items() if origin in typed] if isinstance(origins, dict) else []
    known = dict(flatten(run.settings or {}))
    options = [f"{key}={known[key]}" for key in keys if key in known and key != "seed"]
    return ["--cfg-options", *options] if options else []


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _words(data: Any) -> list[str]:
    return [str(part) for part in data] if isinstance(data, list) else [str(data)]

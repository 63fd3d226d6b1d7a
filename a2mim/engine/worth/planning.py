"""The plan: what will be computed, and how long it will take. Written once; a folder that has one keeps it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from a2mim.engine.worth.answer import cell_name
from a2mim.engine.worth.budget import SEEDS, SHARES, Budget, Work, plan
from a2mim.engine.worth.cells import BATCH, PROBE, TUNING, Arm, Bench, recipe_for
from a2mim.engine.worth.measuring import measure
from a2mim.engine.worth.survey import Survey
from a2mim.files import read_json, write_json
from a2mim.protocols import read_protocol

VERSION = 3
LATE = 1.05  # of the minutes that were asked for: from here on the plan says that it takes longer


def settle_plan(bench: Bench, survey: Survey, arms: list[Arm], asked: dict, started: float) -> dict:
    """The folder's plan; where it has none: measures, divides the minutes, writes plan.json.

    Args:
        asked: the request, as plan.json keeps it.
        started: `time.perf_counter` at the start of the command.

    Raises:
        ValueError: the folder's plan is of other data or another request, or damaged.
    """
    path = bench.folder / "plan.json"
    protocols = {name: read_protocol(name).hash for name in (PROBE, TUNING)}  # cells of other ones are not comparable
    identity = {"version": VERSION, "asked": asked, "data": survey.facts, "protocols": protocols}
    if path.is_file():
        bench.say(f"  plan     that of {path}")
        return _read(path, json.loads(json.dumps(identity)))
    load = os.getloadavg()[0]
    measured = measure(bench, survey, arms, asked["seed"], asked["minutes"], started)
    labelled = {s: len(survey.labelled(s, 0)) for s in SHARES} if survey.train is not None else {}
    work = Work(len(arms), sum(arm.pretrained for arm in arms), len(survey.pool), labelled, BATCH)
    budget = plan(work, measured, asked["minutes"], SEEDS if labelled else (1,))
    if budget.finetune and budget.finetune[SHARES[-1]].images < labelled[SHARES[-1]]:
        for share in SHARES:  # they were measured with more labels than there is time for
            bench.forget(cell_name("frozen", arms[0], share, asked["seed"]))
    found = identity | {
        "arms": [asdict(arm) for arm in arms],
        "recipes": {arm.network: bench.recipe or recipe_for(arm.network) for arm in arms},
        "finetune": read_protocol(TUNING).constants,
        "probe": PROBE,
        "load": {"average": round(load, 2), "cores": os.cpu_count()},
        "measured_seconds": asdict(measured),
        "budget": asdict(budget),
        "expected_minutes": budget.expected,
    }
    write_json(path, found)
    return found


def _read(path: Path, identity: dict) -> dict:
    try:
        found = read_json(path)
        kept = {key: found[key] for key in identity}
        Budget.of(found["budget"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, or of another version ({error}); choose another --out") from None
    if kept != identity:
        asked = identity["asked"]
        differ = [key for key in asked if kept["asked"].get(key) != asked[key]]
        differ = differ or [f"the {key}" for key in ("data", "protocols", "version") if kept[key] != identity[key]]
        raise ValueError(
            f"{path.parent} holds the answer to another request ({', '.join(differ)} differ); choose another --out, or"
            " repeat that request"
        )
    return found


def plan_lines(found: dict, survey: Survey) -> list[str]:
    """The plan as text, with what was measured."""
    budget, measured = Budget.of(found["budget"]), found["measured_seconds"]
    pre, seed, asked = budget.pretrain, found["asked"]["seed"], found["asked"]["minutes"]
    names = "; ".join(arm["name"] for arm in found["arms"])
    lines = [
        f"  arms     {names}; seeds {seed}–{seed + budget.seeds - 1}",
        f"  pretrain {pre.steps:,} steps of {pre.batch}: {pre.epochs} epochs over {pre.images:,} images,"
        f" {pre.steps * measured['pretrain_step'] / 60:.1f} minutes each",
    ]
    told = f"{measured['pretrain_step']:.2g} s a step of pre-training"
    if survey.train is not None:
        each = "; ".join(f"{share} = {s.images:,} images, {s.steps:,} steps" for share, s in budget.finetune.items())
        lines.append(
            f"  labels   {each}; tested on {survey.facts['test_images']:,} images; each frozen ({found['probe']}) and"
            " fine-tuned"
        )
        told += f", {measured['finetune_step']:.2g} s of fine-tuning, {measured['probe'][SHARES[-1]]:.0f} s a frozen"
        told += " judgement with all labels"
    late = budget.expected > LATE * asked
    more = f": more than the {asked:g} asked for, as fewer steps would tell nothing" if late else ""
    load, cores = found["load"]["average"], found["load"]["cores"]
    if load > cores:
        more += f"; other work keeps these {cores} cores busy (load {load:.1f}), so it may be shorter or longer"
    return [*lines, f"  measured {told}", f"  time     about {budget.expected:.0f} minutes in all{more}"]


def time_taken(found: dict, cells: dict[str, dict]) -> dict:
    """Announced and taken minutes: {"asked", "announced", "took", "kinds": {kind: [announced, took]}}.

    What a killed run had done before it went on is not in its cell, so an interrupted comparison took longer.

    Args:
        cells: name -> a cell, with its "kind" and "seconds".
    """
    costs = Budget.of(found["budget"]).costs
    took = dict.fromkeys(costs, 0.0) | {"measuring": found["measured_seconds"]["spent"] / 60}
    for cell in cells.values():
        took[cell["kind"]] += cell["seconds"] / 60
    kinds = {kind: [round(costs[kind], 3), round(took[kind], 3)] for kind in costs}
    whole = {"announced": round(sum(costs.values()), 2), "took": round(sum(took.values()), 2)}
    return {"asked": found["asked"]["minutes"], **whole, "kinds": kinds}


def time_line(taken: dict) -> str:
    """What was announced, and what it took."""
    kinds = ", ".join(f"{kind} {took:.1f} of {announced:.1f}" for kind, (announced, took) in taken["kinds"].items())
    return f"  time     {taken['took']:.1f} minutes; announced were {taken['announced']:.1f} ({kinds})"

"""How long things take on this machine: the only clock that decides anything, read once, before the plan is made."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from a2mim.engine.stored import read_log
from a2mim.engine.worth.answer import cell_name
from a2mim.engine.worth.budget import SHARES, Measured, Schedule, schedule_of
from a2mim.engine.worth.cells import BATCH, Arm, Bench
from a2mim.engine.worth.survey import Survey, part_of

STEPS, WINDOW = 16, 4  # steps of a short run, and those behind one line of its log; the first line warms up
IMAGES = 4 * BATCH  # of a short run
MOST_SHARE = 0.05  # of all minutes, that one frozen judgement with all labels may take to be measured


def measure(bench: Bench, survey: Survey, arms: list[Arm], seed: int, minutes: float, started: float) -> Measured:
    """Seconds of a step, and of everything around the steps.

    The frozen judgements of the first arm are measured by making them: they are cells of the comparison, and stay.
    The runs are short ones that are thrown away. They start, test and end as the long ones do.

    Args:
        seed: of the first repetition.
        minutes: that were asked for.
        started: `time.perf_counter` at the start of the command.
    """
    bench.say("  measuring how long a step takes here")
    labelled = survey.train is not None
    probe = _probes(bench, survey, arms[0], seed, minutes) if labelled else dict.fromkeys(SHARES, 0.0)
    made = sum(bench.cell_seconds(cell_name("frozen", arms[0], share, seed)) for share in SHARES)
    place = bench.folder / "measuring"
    shutil.rmtree(place, ignore_errors=True)
    short = replace(bench, folder=place)
    arm = next(arm for arm in arms if arm.pretrained)
    pool = part_of(survey.pool, np.arange(min(len(survey.pool), IMAGES)))
    plan = schedule_of(len(pool), BATCH, STEPS)
    pretrain = _timed(
        short.run_folder("pretrain"), plan, lambda: short.pretrain("pretrain", arm, pool, plan, 0, **_logged())
    )
    tuned = (1e-6, 0.0)
    if survey.train is not None and survey.test is not None:
        train, test = survey.train, survey.test
        few = part_of(train, np.arange(min(len(train), IMAGES)))
        tuning = schedule_of(len(few), BATCH, STEPS)
        tuned = _timed(
            short.run_folder("finetune"),
            tuning,
            lambda: short.finetune("finetune", arm.network, few, test, tuning, 0, **_logged()),
        )
    shutil.rmtree(place, ignore_errors=True)
    spent = max(0.0, time.perf_counter() - started - made)  # the judgements are counted where they belong
    return Measured(pretrain[0], tuned[0], pretrain[1], tuned[1], probe, spent)


def _probes(bench: Bench, survey: Survey, arm: Arm, seed: int, minutes: float) -> dict[str, float]:
    """Share of the labels -> seconds of a frozen judgement, as its cell notes them.

    With all labels it is estimated by the number of images where making it would take too much of the minutes.
    """
    train, test = survey.train, survey.test
    assert train is not None and test is not None
    found: dict[str, float] = {}
    for share in SHARES:
        some = survey.labelled(share, seed)
        if found:
            guess = found[SHARES[0]] * (len(train) + len(test)) / (len(survey.labelled(SHARES[0], seed)) + len(test))
            if guess > MOST_SHARE * minutes * 60:
                return found | {share: guess}
        name = cell_name("frozen", arm, share, seed)
        cell = bench.judge_frozen(name, arm.start or arm.network, some, test, seed)
        found[share] = cell["seconds"]
    return found


def _logged() -> dict:
    return {"log.every_steps": WINDOW}


def _timed(folder: Path, schedule: Schedule, run: Callable[[], object]) -> tuple[float, float]:
    """(seconds a step, seconds beside the steps) of a short run; the median of its log's lines but the first two."""
    clock = time.perf_counter()
    run()
    whole = time.perf_counter() - clock
    lines, _ = read_log(folder / "log.jsonl")
    rates = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    step = schedule.batch / statistics.median(rates[2:] or rates)
    return step, max(0.0, whole - step * schedule.steps)

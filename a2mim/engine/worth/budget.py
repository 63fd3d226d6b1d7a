"""Minutes into steps: pure arithmetic on measured seconds. From the plan on only steps count, so an answer repeats."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHARES = ("10%", "100%")  # of the labels
SEEDS = (5, 4, 3)  # tried in this order
PRETRAIN_SHARE = 0.6  # of what is left after the fixed costs; the rest is for fine-tuning
GOOD_PRETRAIN, GOOD_FINETUNE = 600, 150  # steps of a run that make another seed worth having
LEAST_STEPS = 20
MOST_FINETUNE_PASSES, ENOUGH_FINETUNE = 100, 300  # passes over all labels, and steps, beyond which no more are given
LEAST_PASSES = 5  # over the images, of pre-training and of fine-tuning: a larger set is cut
CURVE_POINTS = 4
KINDS = ("measuring", "frozen", "curve", "pretrain", "finetune")  # of work
SLACK = 1.1  # lines of the log, checkpoints


@dataclass(frozen=True)
class Measured:
    """Seconds, as a short measurement found them on this machine.

    Attributes:
        pretrain_step, finetune_step: of one optimiser step.
        pretrain_start, finetune_start: of a run besides its steps (building, testing, writing).
        probe: share of the labels -> one frozen judgement.
        spent: what the survey and the measurement took.
    """

    pretrain_step: float
    finetune_step: float
    pretrain_start: float
    finetune_start: float
    probe: dict[str, float]
    spent: float


@dataclass(frozen=True)
class Work:
    """What the command has to do.

    Attributes:
        arms, pretrained: how many arms there are, and how many of them are pre-trained here.
        pool: images to pre-train on.
        labelled: share of the labels -> images; empty without labels.
        batch: images of a step.
    """

    arms: int
    pretrained: int
    pool: int
    labelled: dict[str, int]
    batch: int


@dataclass(frozen=True)
class Schedule:
    """One kind of run: `images` of the set, `batch` images a step, `epochs`, `steps` in all."""

    images: int
    batch: int
    epochs: int

    @property
    def steps(self) -> int:
        return self.epochs * (self.images // self.batch)


@dataclass(frozen=True)
class Budget:
    """The plan in numbers.

    Attributes:
        seeds: how often everything is repeated.
        pretrain: of every pre-training.
        finetune: share of the labels -> of every fine-tuning; all shares take about the same number of steps. Where
            there are more labels than can be passed over LEAST_PASSES times, 100 % is a class-balanced part of them.
        costs: kind of work, one of KINDS -> minutes that all of it will take.
    """

    seeds: int
    pretrain: Schedule
    finetune: dict[str, Schedule]
    costs: dict[str, float]

    @property
    def expected(self) -> float:
        """Minutes that the whole will take, what the measurement took included."""
        return sum(self.costs.values())

    @classmethod
    def of(cls, plain: dict) -> Budget:
        """The budget that `dataclasses.asdict` made these plain values of."""
        finetune = {share: Schedule(**each) for share, each in plain["finetune"].items()}
        return cls(plain["seeds"], Schedule(**plain["pretrain"]), finetune, plain["costs"])


def schedule_of(images: int, batch: int, steps: float) -> Schedule:
    """About so many steps over a set: whole epochs, at least one; a set smaller than a batch gives smaller batches."""
    batch = max(1, min(batch, images))
    return Schedule(images, batch, max(1, math.ceil(steps / (images // batch))))


def plan(work: Work, measured: Measured, minutes: float, choices: tuple[int, ...] = SEEDS) -> Budget:
    """Divides the minutes.

    As many seeds as leave each pre-training GOOD_PRETRAIN and each fine-tuning GOOD_FINETUNE steps; where not even the
    fewest do, these, with at least LEAST_STEPS each, and `expected` then says how much longer it takes.
    """
    for seeds in choices:
        found = _with_seeds(work, measured, minutes, seeds)
        if found.pretrain.steps >= GOOD_PRETRAIN and all(f.steps >= GOOD_FINETUNE for f in found.finetune.values()):
            return found
    return found


def _with_seeds(work: Work, measured: Measured, minutes: float, seeds: int) -> Budget:
    runs = work.arms * len(work.labelled)
    curves = work.pretrained if work.labelled else 0
    costs = {  # seconds that no number of steps changes
        "measuring": measured.spent,
        "frozen": seeds * work.arms * sum(measured.probe[share] for share in work.labelled),
        "curve": curves * (CURVE_POINTS - 1) * measured.probe.get(SHARES[-1], 0.0),
        "pretrain": seeds * work.pretrained * measured.pretrain_start,
        "finetune": seeds * runs * measured.finetune_start,
    }
    left = max(0.0, minutes * 60 - sum(costs.values())) / seeds / SLACK
    tuned, finetune = _finetuning(work, measured, left * (1 - PRETRAIN_SHARE))
    steps = max(LEAST_STEPS, (left - tuned) / max(1, work.pretrained) / measured.pretrain_step)
    pool = min(work.pool, max(work.batch, math.floor(steps * work.batch / LEAST_PASSES)))
    pretrain = schedule_of(pool, work.batch, steps)
    costs["pretrain"] += SLACK * seeds * work.pretrained * pretrain.steps * measured.pretrain_step
    tuning = work.arms * sum(each.steps for each in finetune.values())
    costs["finetune"] += SLACK * seeds * tuning * measured.finetune_step
    return Budget(seeds, pretrain, finetune, {kind: seconds / 60 for kind, seconds in costs.items()})


def _finetuning(work: Work, measured: Measured, seconds: float) -> tuple[float, dict[str, Schedule]]:
    """(seconds of the steps of one seed, share of the labels -> its schedule), for about so many seconds."""
    runs, everything = work.arms * len(work.labelled), work.labelled.get(SHARES[-1], 0)
    most = max(ENOUGH_FINETUNE, MOST_FINETUNE_PASSES * max(1, everything // max(1, min(work.batch, everything))))
    steps = min(max(LEAST_STEPS, seconds / max(1, runs) / measured.finetune_step), most)
    used = min(1.0, steps * work.batch / LEAST_PASSES / max(1, everything))
    schedules = {share: schedule_of(max(2, round(n * used)), work.batch, steps) for share, n in work.labelled.items()}
    return runs * steps * measured.finetune_step, schedules

"""The rules of the health checks. Each takes numbers and returns one sentence about a fault, or None.

Invariant: a rule sees numbers only. `a2mim.engine.health_hook` measures them, and says each fault once.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import scipy  # loads its statistics when they are first used, not when a command starts

CHANCE = 0.05  # what may happen by chance is not said
LINES, SOON = 20, 60  # lines of the log, and steps, after the warm-up that say nothing yet
PLATEAU = 500  # steps that a network may stay at the loss of one colour
FIRST = 5  # lines of the start
MOST_POINTS = 128  # of a curve
SPIKE, SPIKES, NEAR = 10.0, 3, 100  # multiple of the median; number of spikes; steps that hold them
WAITING, WAITING_STEPS = 0.3, 200  # share of the time; steps over which it is measured
LEAST_RANK, RANK_SHARE = 3.0, 0.05  # the second of the first rank
LEAK_WORSENS, LEAK_BELOW = 0.1, 0.9  # of the lead over the simple answers; of their loss
MEMORISED = 1.5  # the factor by which unseen / seen may grow


@dataclass
class Curve:
    """A curve as at most `MOST_POINTS` points of equal weight. Where there are more, neighbours are averaged."""

    points: list[float] = field(default_factory=list)
    width: int = 1  # values that are averaged into a point
    waiting: list[float] = field(default_factory=list)  # values of the next point

    def add(self, value: float) -> None:
        self.waiting.append(value)
        if len(self.waiting) < self.width:
            return
        self.points.append(statistics.fmean(self.waiting))
        self.waiting = []
        if len(self.points) == MOST_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points, self.width = [statistics.fmean(pair) for pair in pairs], 2 * self.width

    def falls(self) -> bool:
        """Whether the later points lie below the earlier ones by more than chance: Mann-Kendall's test of trend."""
        return scipy.stats.kendalltau(range(len(self.points)), self.points, alternative="less").pvalue < CHANCE


@dataclass
class NoLearning:
    """The loss is above that of answering one colour, and it does not fall: each by more than chance.

    A short run may stay above that loss and be healthy, as long as its loss falls. Networks also reach that loss soon
    and stay there for some hundred steps before they learn more. So a loss that is lower than at the start is named
    only `PLATEAU` steps after the warm-up; one that never fell, as soon as the warm-up, 5 % of the steps, 60 steps and
    20 lines of the log are over.

    Args:
        warmup: steps of the warm-up.
        steps: of the run.
        advice: what the recipe sets now: learning rate, mask ratio, token site.
    """

    warmup: int
    steps: int
    advice: str
    whole: Curve = field(default_factory=Curve)  # loss / loss of one colour, since the start
    warm: Curve = field(default_factory=Curve)  # the same since the end of the warm-up
    lines: int = 0  # since the end of the warm-up

    def note(self, line: dict) -> float | None:
        """Remembers a line of the log; returns its loss relative to that of one colour."""
        loss, baseline = line.get("loss"), line.get("baseline")
        if not loss or not baseline or not math.isfinite(loss) or not 0 < baseline < math.inf:
            return None
        self.whole.add(loss / baseline)
        if line["step"] > self.warmup:
            self.warm.add(loss / baseline)
            self.lines += 1
        return loss / baseline

    def see(self, line: dict) -> str | None:
        if self.note(line) is None or self.lines < LINES:
            return None
        step = line["step"]
        if step < self.warmup + max(SOON, 0.05 * self.steps):
            return None
        recent = self.warm.points[-max(LINES // 2, len(self.warm.points) // 4) :]
        if not above_one(recent) or self.whole.falls() or self.warm.falls():
            return None
        if step < self.warmup + PLATEAU and lower(recent, self.whole.points[:FIRST]):
            return None
        return (
            f"The loss is {statistics.fmean(recent):.0%} of that of always answering one colour, after {step:,} of"
            f" {self.steps:,} steps, and it does not fall: the network learns nothing yet. Look at {self.advice}."
        )


def above_one(values: Sequence[float]) -> bool:
    """Whether the mean of the values is above 1 by more than chance: Student's one-sided test."""
    margin = float(scipy.stats.t.ppf(1 - CHANCE, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values) - margin > 1


def lower(later: Sequence[float], earlier: Sequence[float]) -> bool:
    """Whether the later values are lower by more than chance: Mann-Whitney's one-sided test."""
    return scipy.stats.mannwhitneyu(later, earlier, alternative="less").pvalue < CHANCE


@dataclass
class Spikes:
    """Three gradient norms within 100 steps are over 10 times the running median.

    Args:
        clip_grad: of the recipe: the largest norm, or None.
    """

    clip_grad: float | None
    norms: deque = field(default_factory=lambda: deque(maxlen=NEAR))
    found: deque = field(default_factory=lambda: deque(maxlen=SPIKES))

    def see(self, step: int, norm: float | None, names) -> str | None:
        """names: a function that returns the names of the step's images; it is called only at a spike."""
        if norm is None or not math.isfinite(norm):
            return None
        median = statistics.median(self.norms) if len(self.norms) >= 20 else None
        self.norms.append(norm)
        if not median or norm <= SPIKE * median:
            return None
        self.found.append((step, norm, names()))
        if len(self.found) < SPIKES or step - self.found[0][0] >= NEAR:
            return None
        steps = ", ".join(f"{one[0]:,}" for one in self.found)
        images = "; ".join(f"step {one[0]:,}: {', '.join(one[2])}" for one in self.found if one[2])
        clip = "lower optimizer.base_lr" if self.clip_grad else "set clip_grad=1.0, or lower optimizer.base_lr"
        return (
            f"The gradient norm was over {SPIKE:.0f} times its median ({median:.3g}) at steps {steps}, at most"
            f" {max(one[1] for one in self.found):.3g}: {clip}." + (f" Images there: {images}." if images else "")
        )


@dataclass
class Starving:
    """The run spends over 30 % of the time waiting for data, over 200 steps.

    Args:
        workers: data workers of each training process.
        cores: CPU cores of the machine, divided by the training processes.
    """

    workers: int
    cores: int
    seen: deque = field(default_factory=deque)  # of each line: steps, time, time spent waiting
    last: int = 0

    def see(self, line: dict) -> str | None:
        steps, speed = line["step"] - self.last, line.get("images_per_second")
        self.last = line["step"]
        if not speed or "data_share" not in line or steps <= 0:
            return None
        seconds = steps / speed  # up to a factor, the batch size, which cancels out in the share
        self.seen.append((steps, seconds, seconds * line["data_share"]))
        while len(self.seen) > 1 and sum(one[0] for one in self.seen) - self.seen[0][0] >= WAITING_STEPS:
            self.seen.popleft()
        if sum(one[0] for one in self.seen) < WAITING_STEPS:
            return None
        share = sum(one[2] for one in self.seen) / sum(one[1] for one in self.seen)
        if share <= WAITING:
            return None
        wanted = min(max(1, self.cores), max(self.workers + 1, math.ceil(max(1, self.workers) / (1 - min(share, 0.9)))))
        more = (
            f"try --num-workers {wanted} (now {self.workers})"
            if wanted > self.workers
            else f"all {self.cores} cores read already: make the images smaller once (`a2mim shards reshard`)"
        )
        return (
            f"{share:.0%} of the time goes into waiting for data, over {WAITING_STEPS} steps: {more};"
            " `a2mim bench-data` says whether reading, decoding or resizing limits."
        )


def collapse(rank: float, first: float) -> str | None:
    """The effective rank of the features of fixed images is under 5 % of its first value, or has fallen under 3."""
    if not (rank < RANK_SHARE * first or (rank < LEAST_RANK <= first)):
        return None
    return (
        f"The effective rank of the features of fixed images fell from {first:.1f} to {rank:.1f}: the representation is"
        " losing its dimensions. Lower optimizer.base_lr, or look at the target: a target that follows the encoder can"
        " collapse with it."
    )


def leak(own: float, swapped: float, simple: Sequence[float]) -> str | None:
    """The network reconstructs hidden cells without the visible ones: when all visible cells come from another image,
    it keeps over 90 % of its lead over answers that look at nothing.

    Args:
        own, swapped: loss with the image's own visible cells, and with those of another image.
        simple: losses of two answers that need no network: the image's mean colour, and the mean image.
    """
    if not simple or swapped >= LEAK_BELOW * min(simple) or swapped - own > LEAK_WORSENS * (min(simple) - own):
        return None
    return (
        f"The loss on hidden cells is {own:.4f}, and {swapped:.4f} when the visible cells are those of another image:"
        " the architecture, the fill or a transform lets hidden pixels through. `a2mim check-model` tests the"
        " architecture."
    )


def memorising(seen: float, unseen: float, ratio_before: float) -> str | None:
    """The loss on fixed unseen images has become far higher than that on fixed training images.

    Args:
        seen, unseen: losses on training images and on unseen ones.
        ratio_before: unseen / seen at the start, where any difference is one of the images.
    """
    if seen <= 0 or ratio_before <= 0 or unseen / seen < MEMORISED * ratio_before:
        return None
    return (
        f"The loss is {seen:.4f} on training images and {unseen:.4f} on unseen ones: the network learns its images by"
        " heart. Train for fewer epochs (schedule.epochs), or on more images."
    )

"""Rules that tell a sick run from a healthy one. Each takes numbers and answers with one sentence, or with None.

Invariant: a rule sees numbers only; `a2mim.engine.health_hook` measures them and says what was found, once.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

WINDOW = 10  # lines of the log that are looked at together
SOON = 60  # steps after the warm-up that say nothing yet
SPIKE, SPIKES, NEAR = 10.0, 3, 100  # times the median; how often; within so many steps
WAITING, WAITING_STEPS = 0.3, 200  # share of the time; over so many steps
LEAST_RANK, RANK_SHARE = 3.0, 0.05
LEAK_WORSENS, LEAK_BELOW = 1.1, 0.9
MEMORISED = 1.5  # times that the unseen images' share of the training images' loss may grow


@dataclass
class NoLearning:
    """The loss is not below that of answering one colour, and does not fall, after the warm-up and 5 % of the steps, at
    least 60 of them.

    Args:
        warmup: steps of the warm-up.
        steps: of the run.
        advice: what the recipe sets now: learning rate, mask ratio, token site.
    """

    warmup: int
    steps: int
    advice: str
    lines: deque = field(default_factory=lambda: deque(maxlen=WINDOW))

    def see(self, line: dict) -> str | None:
        loss, baseline, step = line.get("loss"), line.get("baseline"), line["step"]
        if not loss or not baseline or baseline <= 0 or step <= self.warmup:
            return None
        self.lines.append(loss / baseline)
        enough = len(self.lines) == WINDOW or (step >= self.steps and len(self.lines) >= 3)
        if step < self.warmup + max(SOON, 0.05 * self.steps) or not enough:
            return None
        shares, half = list(self.lines), len(self.lines) // 2
        mean, falls = statistics.mean(shares), statistics.mean(shares[half:]) < 0.97 * statistics.mean(shares[:half])
        if mean < 1 or (falls and step < 0.3 * self.steps):
            return None
        return (
            f"The loss is {mean:.0%} of that of always answering one colour, after {step:,} of {self.steps:,} steps:"
            f" the network learns nothing yet. Look at {self.advice}."
        )


@dataclass
class Spikes:
    """The gradient norm is over 10 times its running median, three times within 100 steps.

    Args:
        clip_grad: the recipe's.
    """

    clip_grad: float | None
    norms: deque = field(default_factory=lambda: deque(maxlen=NEAR))
    found: deque = field(default_factory=lambda: deque(maxlen=SPIKES))

    def see(self, step: int, norm: float | None, names) -> str | None:
        """names: a function that gives the names of the step's images; it is asked only where there is a spike."""
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
    """Over 30 % of the time goes into waiting for data, over 200 steps.

    Args:
        workers: data processes of each process.
        cores: of the machine, for each process.
    """

    workers: int
    cores: int
    seen: deque = field(default_factory=deque)  # (steps, seconds, seconds waited) of lines
    last: int = 0

    def see(self, line: dict) -> str | None:
        steps, speed = line["step"] - self.last, line.get("images_per_second")
        self.last = line["step"]
        if not speed or "data_share" not in line or steps <= 0:
            return None
        seconds = steps / speed  # in units of a batch, which is all alike
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
    """The effective rank of fixed images is under 5 % of its value at the start, or has fallen under 3."""
    if not (rank < RANK_SHARE * first or (rank < LEAST_RANK <= first)):
        return None
    return (
        f"The effective rank of the features of fixed images fell from {first:.1f} to {rank:.1f}: the representation is"
        " losing its dimensions. Lower optimizer.base_lr, or look at the target: one that follows the encoder can"
        " collapse with it."
    )


def leak(own: float, swapped: float, simple: Sequence[float]) -> str | None:
    """Hidden cells are reconstructed hardly worse when all visible ones are those of another image, and better than
    without seeing anything.

    Args:
        own, swapped: loss with the image's own visible cells, and with another image's.
        simple: losses of answers that see nothing: the image's mean colour, the mean image.
    """
    if not simple or swapped > LEAK_WORSENS * own or swapped >= LEAK_BELOW * min(simple):
        return None
    return (
        f"Hidden cells are reconstructed as well when the visible ones are another image's (loss {own:.4f} and"
        f" {swapped:.4f}): the architecture, the fill or a transform lets hidden pixels through. `a2mim check-model`"
        " tests the architecture."
    )


def memorising(seen: float, unseen: float, ratio_before: float) -> str | None:
    """The loss on fixed training images is far below that on unseen ones, by more than it was at the start.

    Args:
        seen, unseen: losses.
        ratio_before: unseen / seen of the network at the start.
    """
    if seen <= 0 or ratio_before <= 0 or unseen / seen < MEMORISED * ratio_before:
        return None
    return (
        f"The loss is {seen:.4f} on training images and {unseen:.4f} on unseen ones: the network learns its images by"
        " heart. Train for fewer epochs (schedule.epochs), or on more images."
    )

"""What repeated, paired answers allow one to say: helps, does not help, or cannot tell.

Pure statistics: arrays in, words and numbers out. Two things are drawn by chance, the seeds and the test images, and
both errors are part of every interval:

- test images: all seeds are tested on the same images, so the error is that of a mean over images;
- seeds: start weights, order and choice of labels differ; the error follows Student's t, because seeds are few. The
  spread over seeds is estimated from all comparisons together, and never taken smaller than the comparison's own.
  Where one comparison varies more than the others, they say little about it: the degrees of freedom fall
  (Satterthwaite's formula), at worst to those of one comparison.

A confident word needs an interval of SURE that holds for all comparisons together (Bonferroni). The interval that is
printed is the plain 95 % one of a single comparison.

Simulated with 3 seeds and two arms that do not differ, a confident word comes in 0.5 % of cases where the comparisons
vary alike, and in 0.9 % where one varies far more than the others (tests/engine/test_worth_verdict.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

SURE = 0.99  # chance that no interval behind a confident word is wrong, over all comparisons together
SHOWN = 0.95
FEWEST_SEEDS = 2  # one seed says nothing of how much another would differ
FEWEST_IMAGES = 20  # test images; below, no normal distribution describes their mean
LEAST_SPREAD = 0.5  # points: no two seeds are trusted to agree better than this
GUESSING = 5.0  # points above the commonest class: below it no network has learned the labels
WORDS = ("helps", "harms", "does not help", "depends", "cannot tell")


@dataclass(frozen=True)
class Effect:
    """Accuracy after minus accuracy before, in points, over seeds and paired test images.

    Attributes:
        points: the mean over seeds and images.
        low, high: 95 % interval of this comparison alone.
        sure_low, sure_high: interval that holds for all comparisons together with the chance SURE.
        image_error, seed_error: standard errors from the choice of test images and from the seeds.
        seeds, images: how many.
    """

    points: float
    low: float
    high: float
    sure_low: float
    sure_high: float
    image_error: float
    seed_error: float
    seeds: int
    images: int


@dataclass(frozen=True)
class Verdict:
    """One answer.

    Attributes:
        word: one of WORDS.
        reason: "gain", "loss", "both", "no gain worth having", "nothing learned", "too few seeds", "too few test
            images" or "too uncertain".
        effects: name of the comparison -> its effect.
        strongest: name of the comparison with the largest gain, by the lower end of its interval.
    """

    word: str
    reason: str
    effects: dict[str, Effect]
    strongest: str


def checked(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as (seeds, images) float64; ValueError where they cannot be paired."""
    pair = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if pair[0].shape != pair[1].shape or pair[0].ndim != 2 or 0 in pair[0].shape:
        raise ValueError(
            f"a comparison takes answers (seeds, test images) of both arms, got {pair[0].shape} and {pair[1].shape}"
        )
    return pair


def variance_over_seeds(before: np.ndarray, after: np.ndarray) -> float:
    """Variance over seeds of the difference, in points squared: that of one arm plus that of the other.

    Seeds are not paired: an arm's luck says nothing of the other's. The labels that both arms of a seed share make the
    true variance smaller, if anything.
    """
    return sum(float((100 * arm.mean(axis=1)).var(ddof=1)) for arm in checked(before, after))


def spread_over_seeds(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """(standard deviation over seeds of the difference, in points, pooled over comparisons; its degrees of freedom).

    With S seeds a comparison has 2 (S - 1) degrees of freedom, as two arms that do not differ have.

    Source: Satterthwaite 1946, https://doi.org/10.2307/3002019: the freedom of a sum of unequal variances.
    """
    variances, weights = [], []
    for before, after in pairs.values():
        if len(before) > 1:
            variances.append(variance_over_seeds(before, after))
            weights.append(len(before) - 1)
    if not weights:
        return math.inf, 0.0
    v, f = np.array(variances), np.array(weights)
    pooled = float((f * v).sum() / f.sum())
    freedom = 2 * (f * v).sum() ** 2 / (f * v**2).sum() if pooled else 2 * f.sum()
    return math.sqrt(pooled), float(freedom)


def effect_of(before: np.ndarray, after: np.ndarray, spread: float, freedom: float, comparisons: int = 1) -> Effect:
    """The effect with its intervals.

    Args:
        before, after: (S, M), 1 where the answer to a test image is right, else 0.
        spread, freedom: of `spread_over_seeds`.
        comparisons: how many comparisons the sure interval is to hold for.
    """
    a, b = checked(before, after)
    change = 100 * (b - a)
    seeds, images = change.shape
    each = change.mean(axis=0)
    # one image that changed each way is added, so that answers that happen to agree do not pass for certainty
    variance = (((each - each.mean()) ** 2).sum() + 2 * 100.0**2 / seeds) / (images + 2)
    image_error = math.sqrt(variance / images)
    own = math.sqrt(variance_over_seeds(a, b)) if seeds > 1 else math.inf
    least = max(LEAST_SPREAD, 50 / images)
    seed_error = max(own, spread, least) / math.sqrt(seeds)
    points = float(change.mean())
    half = _half(image_error, seed_error, freedom, 1 - SHOWN)
    sure = _half(image_error, seed_error, freedom, (1 - SURE) / comparisons)
    if seeds < FEWEST_SEEDS:
        half = _half(image_error, 0.0, 1, 1 - SHOWN)  # the images' error alone: all that one seed can show
    return Effect(
        points, points - half, points + half, points - sure, points + sure, image_error, seed_error, seeds, images
    )


def _half(image_error: float, seed_error: float, freedom: float, alpha: float) -> float:
    """Half the width of a two-sided interval: both parts at their own quantile, added as variances are."""
    normal = float(stats.norm.ppf(1 - alpha / 2))
    if not seed_error:
        return normal * image_error
    student = float(stats.t.ppf(1 - alpha / 2, freedom)) if freedom else math.inf
    return math.hypot(normal * image_error, student * seed_error)


def most_accuracy(answers: list[np.ndarray]) -> float:
    """The best accuracy, in percent, that any of these arms may truly have: the largest upper end, one-sided 97.5 %.

    That all of them lie below a bound needs no correction for their number: each alone has to be shown to.

    Args:
        answers: (S, M) of each arm.
    """
    most, level = 0.0, 0.975
    for each in answers:
        right = np.asarray(each, np.float64)
        seeds, images = right.shape
        per_image = right.mean(axis=0)
        variance = (((per_image - per_image.mean()) ** 2).sum() + 0.5) / (images + 2)
        own = right.mean(axis=1).var(ddof=1) if seeds > 1 else math.inf
        error = math.sqrt(variance / images + own / seeds)
        most = max(most, 100 * (float(right.mean()) + float(stats.norm.ppf(level)) * error))
    return most


def decide(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], chance: float, worth: float = 3.0, trained: tuple[str, ...] = ()
) -> Verdict:
    """The one answer to all comparisons.

    Args:
        pairs: name -> answers (S, M) before and after, all on the same seeds and test images.
        chance: accuracy of always answering the commonest class, in percent.
        worth: a gain below so many points counts as none.
        trained: names of the comparisons with all labels: where the arm after only guesses in them, it is no help.

    The rule, in this order: too few seeds or test images: cannot tell. Sure gains and sure losses: depends. A sure
    gain: helps. A sure loss: harms. With all labels the arm after beats guessing by less than GUESSING: does not help.
    Every gain is surely below `worth`: does not help. Else: cannot tell.
    """
    if not pairs:
        raise ValueError("there is nothing to compare: give at least one pair of answers")
    spread, freedom = spread_over_seeds(pairs)
    effects = {name: effect_of(*pair, spread, freedom, len(pairs)) for name, pair in pairs.items()}
    strongest = max(effects, key=lambda name: (effects[name].sure_low, effects[name].points))
    word, reason = _word(effects, pairs, chance, worth, trained or tuple(pairs))
    return Verdict(word, reason, effects, strongest)


def _word(effects: dict[str, Effect], pairs, chance: float, worth: float, trained: tuple[str, ...]) -> tuple[str, str]:
    some = next(iter(effects.values()))
    if some.seeds < FEWEST_SEEDS:
        return "cannot tell", "too few seeds"
    if some.images < FEWEST_IMAGES:
        return "cannot tell", "too few test images"
    gains = any(e.sure_low > 0 for e in effects.values())
    losses = any(e.sure_high < 0 for e in effects.values())
    if gains and losses:
        return "depends", "both"
    if gains:
        return "helps", "gain"
    if losses:
        return "harms", "loss"
    if most_accuracy([pairs[name][1] for name in trained]) < chance + GUESSING:
        return "does not help", "nothing learned"
    if all(e.sure_high < worth for e in effects.values()):
        return "does not help", "no gain worth having"
    return "cannot tell", "too uncertain"


def needed(effect: Effect, worth: float) -> dict[str, int]:
    """How many test images, and how many seeds, would bring each part of the error to half of `worth`; about."""
    image_sd, seed_sd = effect.image_error * math.sqrt(effect.images), effect.seed_error * math.sqrt(effect.seeds)
    target = worth / 2 / 3  # a sure interval is about three standard errors wide to each side
    seeds = math.ceil((seed_sd / target) ** 2) if math.isfinite(seed_sd) else 3
    return {"test_images": math.ceil((image_sd / target) ** 2), "seeds": max(3, seeds)}

"""The verdict on simulated answers whose truth is known: often right, never confidently wrong."""

import numpy as np
import pytest

from a2mim.engine.worth.verdict import (
    FEWEST_IMAGES,
    decide,
    effect_of,
    most_accuracy,
    needed,
    spread_over_seeds,
)

COMPARISONS = ("frozen 10%", "tuned 10%", "frozen 100%", "tuned 100%")
TRAINED = COMPARISONS[2:]


def simulate(rng, gains, seeds, images, base=0.5, spread=0.01, agree=0.7):
    """Answers of a test in which each comparison's true gain is `gains` (of 1).

    An image has a difficulty that all networks share (weight `agree`), a network has luck of its own, and each run's
    true accuracy varies over seeds by `spread`, one number or one for each comparison.
    """
    pairs, difficulty = {}, rng.random(images)
    spreads = dict(zip(COMPARISONS, np.broadcast_to(spread, 4), strict=True))
    for name, gain in zip(COMPARISONS, gains, strict=True):
        pair = []
        for arm in range(2):
            own = rng.random((seeds, images))
            shared = rng.random((seeds, images)) < agree
            level = np.clip(base + arm * gain + rng.normal(0, spreads[name], (seeds, 1)), 0, 1)
            pair.append((np.where(shared, difficulty, own) < level).astype(float))
        pairs[name] = tuple(pair)
    return pairs


def words(gains, seeds, images, trials, chance=33.3, **how):
    rng = np.random.default_rng([abs(round(1000 * g)) for g in gains] + [seeds, images])
    return [decide(simulate(rng, gains, seeds, images, **how), chance, 3.0, TRAINED).word for _ in range(trials)]


@pytest.mark.parametrize("seeds", [3, 4, 5])
def test_a_clear_gain_is_seen_in_nine_of_ten(seeds):
    found = words([0.12, 0.12, 0.15, 0.15], seeds, 500, 100)
    assert found.count("helps") >= 90
    assert set(found) <= {"helps", "cannot tell"}


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("images", [25, 100, 400, 2000])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.06])
def test_without_a_gain_it_is_never_said_to_help_or_harm(seeds, images, spread):
    found = words([0, 0, 0, 0], seeds, images, 100, spread=spread)
    wrong = sum(word in ("helps", "harms", "depends") for word in found)
    assert wrong <= 2, found  # 7,200 intervals at a level of 99 % for four together: a few may err
    assert wrong == 0 or images > 25


def test_over_thousands_of_empty_tests_the_confident_errors_stay_within_the_level():
    rng, wrong, trials = np.random.default_rng(5), 0, 2000
    for _ in range(trials):
        word = decide(simulate(rng, [0, 0, 0, 0], 3, 150, spread=0.03), 33.3, 3.0, TRAINED).word
        wrong += word != "cannot tell"
    assert wrong <= 0.01 * trials


@pytest.mark.parametrize("spread", [[0.1, 0.01, 0.01, 0.01], [0.2, 0.0, 0.0, 0.0], [0.12, 0.12, 0.06, 0.02]])
def test_a_comparison_that_varies_more_than_the_others_is_not_trusted_as_they_are(spread):
    found = words([0, 0, 0, 0], 3, 300, 400, spread=spread)
    told = {word: found.count(word) / len(found) for word in set(found)}
    assert told.get("helps", 0) <= 0.01 and told["cannot tell"] >= 0.985, told


def test_the_freedom_of_unequal_spreads_is_that_of_the_comparison_that_dominates():
    still, unlike = np.zeros((3, 50)), np.zeros((3, 50))
    unlike[2, :40] = 1
    pairs = {"a": (still, unlike), "b": (still, still), "c": (still, still)}
    spread, freedom = spread_over_seeds(pairs)
    assert freedom == pytest.approx(4) and spread == pytest.approx(80 / 3, rel=1e-6)
    alike = dict.fromkeys("abc", (still, unlike))
    assert spread_over_seeds(alike) == (pytest.approx(80 / 3**0.5), pytest.approx(12))


def test_labels_that_nobody_can_learn_are_recognised():
    found = words([0, 0, 0, 0], 3, 1000, 100, chance=50.0, base=0.5, spread=0.005, agree=0.3)
    assert found.count("does not help") >= 90
    assert set(found) <= {"does not help", "cannot tell"}


def test_a_gain_is_never_called_none():
    for seeds, images in ((2, 30), (3, 100), (3, 500)):
        found = words([0.08, 0.08, 0.08, 0.08], seeds, images, 100, base=0.45, chance=33.3)
        assert "does not help" not in found and "harms" not in found


def test_what_learns_only_after_pretraining_is_no_case_of_nothing_learned():
    found = words([0.2, 0.2, 0.2, 0.2], 3, 300, 100, base=0.5, chance=50.0)
    assert "does not help" not in found and found.count("helps") >= 90


def test_no_gain_worth_having_is_said_only_where_the_test_is_large():
    large = words([0, 0, 0, 0], 5, 40_000, 20, spread=0.002, agree=0.9, base=0.7)
    assert large.count("does not help") >= 18
    assert set(words([0, 0, 0, 0], 3, 300, 50, base=0.7)) == {"cannot tell"}


def test_a_sure_loss_harms_and_both_depend():
    assert words([-0.2, -0.2, -0.2, -0.2], 3, 500, 20, base=0.7).count("harms") >= 18
    assert words([0.2, -0.2, 0.2, -0.2], 3, 500, 20, base=0.6).count("depends") >= 18


@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_one_seed_or_few_images_cannot_tell(gain):
    assert set(words([gain] * 4, 1, 1000, 20)) == {"cannot tell"}
    assert set(words([gain] * 4, 5, FEWEST_IMAGES - 1, 20)) == {"cannot tell"}


def test_the_shown_interval_holds_the_truth_as_often_as_it_says():
    rng, held, trials = np.random.default_rng(0), 0, 600
    for _ in range(trials):
        pairs = simulate(rng, [0.05] * 4, 3, 300, spread=0.02)
        effect = decide(pairs, 33.3).effects[COMPARISONS[0]]
        held += effect.low <= 5.0 <= effect.high
    assert held >= 0.94 * trials


def test_answers_that_all_agree_leave_an_interval_with_a_width():
    same = np.ones((3, 50))
    effect = effect_of(same, same, 0.0, 8)
    assert effect.points == 0 and effect.low < -1 and effect.high > 1


def test_the_effect_by_hand():
    before, after = np.zeros((2, 4)), np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
    spread, freedom = spread_over_seeds({"one": (before, after)})
    assert (spread, freedom) == (pytest.approx(17.677669), 2)  # of 50 and 25 points
    effect = effect_of(before, after, spread, freedom)
    assert effect.points == pytest.approx(37.5)
    assert effect.seed_error == pytest.approx(12.5)
    each = np.array([100, 50, 0, 0])
    variance = (((each - 37.5) ** 2).sum() + 1e4) / 6
    assert effect.image_error == pytest.approx((variance / 4) ** 0.5)


def test_the_largest_accuracy_lies_above_the_mean_and_shrinks_with_images():
    rng = np.random.default_rng(0)
    small, large = ((rng.random((3, n)) < 0.5).astype(float) for n in (50, 5000))
    assert most_accuracy([large]) < 53 < most_accuracy([small])


def test_more_images_or_seeds_are_asked_for_in_proportion_to_the_error():
    effect = effect_of(*next(iter(simulate(np.random.default_rng(0), [0] * 4, 3, 100).values())), 2.0, 8)
    assert needed(effect, 3.0)["test_images"] > 100
    assert needed(effect, 1.0)["test_images"] > 8 * needed(effect, 3.0)["test_images"]
    assert needed(effect, 100.0)["seeds"] == 3


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match="seeds, test images"):
        decide({"one": (np.zeros((2, 3)), np.zeros((2, 4)))}, 50.0)
    with pytest.raises(ValueError, match="at least one pair"):
        decide({}, 50.0)

"""Intervals: textbook values, coverage by simulation, and verdicts that stay silent on tiny sets."""

import numpy as np
import pytest
import torch

from a2mim.evaluation import difference, paired_difference, verdict, wilson_interval


def test_wilson_gives_the_textbook_values():
    # R: prop.test(x, n, correct = FALSE)$conf.int
    assert wilson_interval(10, 20) == pytest.approx((29.93, 70.07), abs=0.01)
    assert wilson_interval(0, 10) == pytest.approx((0, 27.75), abs=0.01)
    assert wilson_interval(10, 10) == pytest.approx((72.25, 100), abs=0.01)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_wilson_covers_the_truth_about_95_times_in_100(share):
    hits = np.random.default_rng(0).binomial(80, share, size=4000)
    intervals = [wilson_interval(int(h), 80) for h in hits]
    coverage = np.mean([low <= 100 * share <= high for low, high in intervals])
    assert 0.93 < coverage < 0.98


@pytest.mark.parametrize(("correct", "total"), [(3, 2), (-1, 4), (0, 0)])
def test_what_is_no_proportion_is_refused(correct, total):
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(correct, total)


def answers(both, only_a, only_b, neither):
    """(correct_a, correct_b) with these counts."""
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return torch.tensor(a), torch.tensor(b)


def test_the_difference_is_b_minus_a_in_points_inside_its_interval():
    difference, low, high = paired_difference(*answers(50, 10, 30, 10))
    assert difference == pytest.approx(20)
    # normal approximation: sd of one image's change is sqrt(0.4 - 0.04), of the mean 6.0 points
    assert (low, high) == pytest.approx((20 - 11.8, 20 + 11.8), abs=1.5)


def test_the_bootstrap_equals_resampling_images_one_by_one():
    a, b = answers(20, 4, 9, 7)
    change = b.numpy().astype(int) - a.numpy().astype(int)
    rows = np.random.default_rng(5).integers(len(change), size=(20_000, len(change)))
    expected = np.percentile(100 * change[rows].mean(axis=1), [2.5, 97.5])
    assert paired_difference(a, b)[1:] == pytest.approx(tuple(expected), abs=100 / 40 + 1e-6)


def test_pairing_makes_the_interval_narrower_than_two_separate_ones():
    _, low, high = paired_difference(*answers(480, 2, 20, 498))
    apart_low, apart_high = wilson_interval(482, 1000)
    assert high - low < 0.5 * (apart_high - apart_low)


def test_the_same_seed_gives_the_same_interval():
    pair = answers(30, 5, 9, 6)
    assert paired_difference(*pair, seed=3) == paired_difference(*pair, seed=3)


def test_different_sets_are_refused():
    with pytest.raises(ValueError, match="same images"):
        paired_difference(torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool))


def test_verdicts_name_gain_loss_and_what_the_set_cannot_show():
    before, after = answers(50, 5, 40, 5)
    assert "a gain (+35.0 points" in verdict("linear probe", before, after)
    assert "a loss (-35.0 points" in verdict("linear probe", after, before)
    assert "no difference that 100 test images can show" in verdict("k-NN", *answers(50, 20, 22, 8))


def test_five_test_images_never_make_a_gain():
    assert "no difference" in verdict("k-NN", *answers(0, 0, 5, 0))
    assert "a gain" in verdict("k-NN", *answers(0, 0, 6, 0))


@pytest.mark.parametrize(
    ("counts", "word"), [((50, 10, 30, 10), "gain"), ((50, 30, 10, 10), "loss"), ((50, 20, 20, 10), "none")]
)
def test_a_difference_carries_the_numbers_and_the_word_of_its_sentence(counts, word):
    pair = answers(*counts)
    found = difference("k-NN", *pair)
    assert (found.points, found.low, found.high) == paired_difference(*pair)
    assert (found.name, found.word, found.n_test) == ("k-NN", word, 100)
    assert found.sentence() == verdict("k-NN", *pair)


def test_five_changed_answers_are_no_gain():
    assert (
        difference("x", *answers(50, 0, 5, 10)).word == "none" and difference("x", *answers(1, 0, 9, 1)).word == "gain"
    )

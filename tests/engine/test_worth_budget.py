"""Minutes divided into steps, by arithmetic alone."""

import pytest

from a2mim.engine.worth.budget import (
    GOOD_FINETUNE,
    GOOD_PRETRAIN,
    LEAST_PASSES,
    LEAST_STEPS,
    SEEDS,
    Measured,
    Work,
    plan,
    schedule_of,
)

FAST = Measured(0.05, 0.05, 5.0, 5.0, {"10%": 3.0, "100%": 6.0}, 30.0)
WORK = Work(2, 1, 3000, {"10%": 300, "100%": 3000}, 32)


@pytest.mark.parametrize("minutes", [10, 30, 60, 240])
def test_the_whole_takes_about_the_minutes_and_never_much_more(minutes):
    found = plan(WORK, FAST, minutes)
    assert found.expected <= 1.1 * minutes
    if minutes <= 60:
        assert found.expected >= 0.8 * minutes


def test_all_arms_and_shares_get_about_as_many_steps():
    steps = [each.steps for each in plan(WORK, FAST, 30).finetune.values()]
    assert max(steps) <= 1.3 * min(steps) and min(steps) >= GOOD_FINETUNE


def test_more_minutes_never_give_fewer_seeds_or_less_pretraining_in_all():
    found = [plan(WORK, FAST, minutes) for minutes in (5, 10, 20, 40, 80)]
    seeds = [each.seeds for each in found]
    totals = [each.seeds * each.pretrain.steps for each in found]
    assert seeds == sorted(seeds) and totals == sorted(totals)
    assert seeds[-1] == max(SEEDS) and found[-1].pretrain.steps >= GOOD_PRETRAIN


def test_too_few_minutes_say_how_long_it_takes_instead():
    found = plan(WORK, FAST, 0.1)
    assert found.seeds == min(SEEDS) and found.expected > 1
    assert min(found.pretrain.steps, *(each.steps for each in found.finetune.values())) >= LEAST_STEPS


def test_a_set_that_cannot_be_passed_over_often_enough_is_cut():
    work = Work(2, 1, 1_000_000, {"10%": 300, "100%": 3000}, 32)
    pretrain = plan(work, FAST, 30).pretrain
    assert pretrain.images < 1_000_000 and pretrain.epochs >= LEAST_PASSES - 1


def test_without_labels_all_the_time_goes_to_pretraining():
    found = plan(Work(1, 1, 3000, {}, 32), Measured(0.05, 1e-6, 5.0, 0.0, {"100%": 0.0}, 30.0), 10, (1,))
    assert found.seeds == 1 and found.finetune == {}
    assert found.pretrain.steps > 0.45 * 600 / 0.05


@pytest.mark.parametrize(("images", "batch"), [(1, 1), (5, 5), (32, 32), (33, 32), (1000, 32)])
def test_a_small_set_gives_smaller_batches(images, batch):
    found = schedule_of(images, 32, 40)
    assert found.batch == batch and found.epochs >= 1
    assert 40 <= found.steps < 40 + images // batch


def test_more_labels_than_there_is_time_for_are_cut_alike_in_both_shares():
    few = plan(Work(2, 1, 50_000, {"10%": 5000, "100%": 50_000}, 32), FAST, 10).finetune
    assert few["100%"].images < 50_000 and few["100%"].epochs >= LEAST_PASSES
    assert few["10%"].images == pytest.approx(few["100%"].images / 10, abs=1)
    assert plan(Work(2, 1, 50_000, {"10%": 5000, "100%": 50_000}, 32), FAST, 10).expected <= 11

import numpy as np
import pytest

from a2mim.data import plan
from a2mim.data.plan import Plan


def test_the_order_is_frozen():
    """Computed by version 1 itself: a change breaks every saved position and must raise the version."""
    assert plan.VERSION == 1
    assert Plan([5, 7, 4], 4, seed=3, lanes=4).order(0).tolist() == FROZEN_WHOLE
    assert Plan([5, 7, 4], 4, seed=3, lanes=2, block=3).order(11).tolist() == FROZEN_BLOCKS


FROZEN_WHOLE = [14, 5, 8, 13, 15, 3, 7, 11, 0, 4, 9, 10, 1, 2, 6, 12]
FROZEN_BLOCKS = [9, 2, 10, 0, 8, 1, 13, 4, 12, 3, 11, 5, 15, 7, 14, 6]


@pytest.mark.parametrize("sizes", [[1], [100], [13, 1, 0, 40], [7] * 30])
@pytest.mark.parametrize(("lanes", "block"), [(1, None), (8, None), (64, None), (8, 4), (5, 1000)])
def test_every_sample_comes_once_an_epoch(sizes, lanes, block):
    order = Plan(sizes, 1 if sum(sizes) < 10 else 10, lanes=lanes, block=block).order(2)
    assert sorted(order) == list(range(sum(sizes)))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_share_each_global_batch_without_overlap(world_size):
    one = Plan([30, 50, 21], 16, seed=5)
    many = Plan([30, 50, 21], 16, seed=5)
    for step in range(one.steps):
        parts = [many.batch(1, step, rank, world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {16 // world_size}
        assert sorted(np.concatenate(parts)) == sorted(one.batch(1, step))


def test_a_rank_keeps_to_its_lanes_and_a_lane_to_its_part_of_the_data():
    order = Plan([20] * 16, 16, lanes=16)
    lanes = [set(order.order(0)[lane::16]) for lane in range(16)]
    assert all(len({sample // 20 for sample in lane}) <= 2 for lane in lanes)
    for rank in range(4):
        read = set(np.concatenate([order.batch(0, step, rank, 4) for step in range(order.steps)]))
        assert read == set.union(*lanes[rank::4])


def test_epochs_and_seeds_differ():
    plans = [Plan([50, 50], 10, seed=s).order(e).tolist() for s in range(3) for e in range(3)]
    assert len({tuple(order) for order in plans}) == 9


def test_the_rest_that_is_left_out_differs_between_epochs():
    order = Plan([25], 10)
    left_out = {tuple(sorted(order.order(epoch)[20:])) for epoch in range(10)}
    assert order.steps == 2 and len(left_out) == 10


def test_a_batch_mixes_nearly_as_many_shards_as_a_full_permutation():
    sizes, batch = [100] * 200, 256
    seen = [len(set(Plan(sizes, batch).batch(0, step) // 100)) for step in range(20)]
    full = [len(set(np.random.default_rng(s).permutation(20_000)[:batch] // 100)) for s in range(20)]
    assert np.mean(seen) > 0.98 * np.mean(full)


def test_a_set_smaller_than_the_batch_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"9 images and global_batch_size is 10.*lower global_batch_size"):
        Plan([4, 5], 10)


def test_ranks_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"global_batch_size=10 cannot be divided among 4 processes"):
        Plan([40], 10).batch(0, 0, rank=0, world_size=4)

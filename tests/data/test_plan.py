import hashlib

import numpy as np
import pytest

from a2mim.data import plan
from a2mim.data.plan import Plan


def test_the_order_is_frozen():
    """Computed by version 1 itself: a change breaks every saved position and must raise the version."""
    assert plan.VERSION == 1
    assert Plan([5, 7, 4], 4, seed=3, lanes=4).order(0).tolist() == FROZEN_WHOLE
    assert Plan([5, 7, 4], 4, seed=3, lanes=2, block=3).order(11).tolist() == FROZEN_BLOCKS


@pytest.mark.parametrize(
    ("arguments", "epoch", "digest"),
    [
        (dict(global_batch_size=256, seed=0), 0, "5ebcb14dd000cf36"),
        (dict(global_batch_size=256, seed=0), 7, "b50805204a4057d5"),
        (dict(global_batch_size=100, seed=2**31, lanes=8, block=500), 3, "fc5edd95e74f6bf7"),
        (dict(global_batch_size=8, seed=1, lanes=64), 1, "7d834b1a64b4b34c"),
    ],
)
def test_long_orders_are_frozen_too(arguments, epoch, digest):
    """BLAKE2b of the little-endian int64 ids, computed by version 1 itself."""
    order = Plan([1000, 999, 0, 1, 2500] * 4, **arguments).order(epoch)
    assert hashlib.blake2b(order.astype("<i8").tobytes(), digest_size=8).hexdigest() == digest


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


def test_a_batch_mixes_as_many_shards_as_a_full_permutation_within_one_percent():
    """1,281 shards of 1,000 and batches of 2,048, as of ImageNet: expected are 1281 * (1 - (1 - 1/1281)^2048) = 1,022.

    A full permutation is drawn beside it: 8 batches of each.
    """
    sizes, batch = [1000] * 1281, 2048
    order = Plan(sizes, batch).order(3)
    full = np.random.default_rng(0).permutation(sum(sizes))
    steps = range(0, 624, 78)
    seen, ideal = (np.mean([len(set(ids[s * batch :][:batch] // 1000)) for s in steps]) for ids in (order, full))
    assert abs(seen / ideal - 1) < 0.01


def test_the_rest_is_counted():
    assert Plan([25], 10).left_out == 5 and Plan([30], 10).left_out == 0


@pytest.mark.parametrize("world_size", [2, 4, 8, 16])
def test_every_rank_count_that_divides_the_lanes_keeps_ranks_to_their_own_lanes(world_size):
    """So that a rank reads other shards than the rest, and the same ones in all its steps."""
    plan = Plan([50] * 64, 32, lanes=16)
    lane_of = {sample: position % 16 for position, sample in enumerate(plan.order(0))}
    for rank in range(world_size):
        lanes = {lane_of[i] for step in range(plan.steps) for i in plan.batch(0, step, rank, world_size)}
        assert lanes == set(range(rank, 16, world_size))


def test_a_set_smaller_than_the_batch_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"9 images and global_batch_size is 10.*lower global_batch_size"):
        Plan([4, 5], 10)


def test_ranks_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"global_batch_size=10 cannot be divided among 4 processes"):
        Plan([40], 10).batch(0, 0, rank=0, world_size=4)

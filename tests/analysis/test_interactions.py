"""Interaction strength, against its definition by a slow loop, and on networks whose answer is known."""

import numpy as np
import pytest
import torch

from a2mim.analysis.interactions import (
    Sampling,
    draw_contexts,
    draw_pairs,
    interaction_strength,
    interactions_of,
    keep_cells,
    margins,
    number_of_pairs,
)

SMALL = Sampling(grid=(4, 4), pairs=6, contexts=5, seed=3)


def images(n=2, side=8):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def cell_sums(batch: torch.Tensor) -> torch.Tensor:
    """(B, 3, 8, 8) -> (B, 16): the sum of each cell."""
    return torch.nn.functional.avg_pool2d(batch.sum(1, keepdim=True), 2).flatten(1).double() * 4


def additive(batch: torch.Tensor) -> torch.Tensor:
    """Two logits whose margin is a sum over cells."""
    total = cell_sums(batch).tanh().sum(dim=1)
    return torch.stack([total, torch.zeros_like(total)], dim=1)


def entangled(batch: torch.Tensor) -> torch.Tensor:
    """Three logits in which cells meet."""
    x = cell_sums(batch) / 4
    return torch.stack([x.sin().sum(1) ** 2 / 8, (x[:, :8] * x[:, 8:]).sum(1) / 4, x.sum(1).tanh()], dim=1)


def test_an_additive_network_has_no_interaction_at_any_order():
    found = interactions_of(additive, images()[0], 0, SMALL, number=0, batch_size=64)
    assert found.shape == (len(SMALL.orders), 6)
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-12, rtol=0)


def test_the_mean_of_the_strength_over_orders_is_one():
    found = interaction_strength(entangled, images(3), torch.tensor([0, 1, 2]), SMALL)
    assert np.mean(found["strength"]) == pytest.approx(1)
    assert all(low <= j <= high for low, j, high in zip(found["low"], found["strength"], found["high"], strict=True))


def test_the_interaction_of_an_order_is_the_mean_over_pairs_and_images_of_its_size():
    labels = [0, 1, 2]
    told = interaction_strength(entangled, images(3), torch.tensor(labels), SMALL)["interaction"]
    every = [interactions_of(entangled, images(3)[k], labels[k], SMALL, number=k, batch_size=64) for k in range(3)]
    assert told == pytest.approx(torch.stack(every).abs().mean(dim=(0, 2)).tolist())
    assert told != pytest.approx(torch.stack(every).mean(dim=2).abs().mean(dim=0).tolist())  # pairs of both signs


def test_a_slow_loop_agrees():
    image, label, orders = images()[1], 2, []
    found = interactions_of(entangled, image, label, SMALL, 7, batch_size=11, after_order=lambda: orders.append(1))
    assert len(orders) == len(SMALL.orders)  # the steps of the progress bar
    generator = np.random.default_rng([SMALL.seed, 7])
    pairs = draw_pairs(SMALL, generator)
    for o, order in enumerate(SMALL.orders):
        for p, (i, j) in enumerate(pairs):
            total = 0.0
            for context in draw_contexts(SMALL, pairs[p], order, generator):
                value = {}
                for extra in ((), (i,), (j,), (i, j)):
                    kept = {*np.flatnonzero(context), *extra}
                    shown = torch.zeros_like(image)
                    for cell in kept:
                        row, column = divmod(int(cell), 4)
                        part = (slice(None), slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
                        shown[part] = image[part]
                    logits = entangled(shown[None])[0]
                    rest = torch.cat([logits[:label], logits[label + 1 :]])
                    value[extra] = float(logits[label] - rest.exp().sum().log())
                total += value[i, j] - value[(i,)] - value[(j,)] + value[()]
            assert float(found[o, p]) == pytest.approx(total / SMALL.contexts, abs=1e-6)


def test_orders_are_those_of_the_paper():
    orders = Sampling(grid=(14, 14)).orders
    assert orders == [0, 9, 19, 38, 58, 77, 97, 116, 135, 155, 174, 184, 194]
    assert Sampling(grid=(14, 14)).forwards == 130_000


def test_pairs_are_near_different_and_unordered():
    sampling = Sampling(grid=(5, 7), pairs=number_of_pairs((5, 7)))
    pairs = draw_pairs(sampling, np.random.default_rng(0))
    assert len({frozenset(pair) for pair in pairs.tolist()}) == sampling.pairs
    rows, columns = pairs // 7, pairs % 7
    assert (abs(rows[:, 0] - rows[:, 1]) <= 2).all() and (abs(columns[:, 0] - columns[:, 1]) <= 2).all()
    assert (pairs[:, 0] != pairs[:, 1]).all()


@pytest.mark.parametrize("order", [0, 5, 14])
def test_a_context_has_exactly_so_many_cells_and_never_the_pair(order):
    pair = np.array([3, 9])
    contexts = draw_contexts(SMALL, pair, order, np.random.default_rng(0))
    assert (contexts.sum(axis=1) == order).all() and not contexts[:, pair].any()


def test_what_is_not_kept_is_zero_and_the_rest_untouched():
    image = images(1)[0]
    kept = torch.zeros(1, 16, dtype=torch.bool)
    kept[0, 5] = True
    shown = keep_cells(image, kept, (4, 4))[0]
    assert torch.equal(shown[:, 2:4, 2:4], image[:, 2:4, 2:4])
    assert shown.count_nonzero() == image[:, 2:4, 2:4].count_nonzero()


def test_the_margin_leaves_out_the_class_itself():
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    assert margins(logits, 0).item() == pytest.approx(1 - np.log(np.exp(2) + np.exp(3)))


def test_more_images_change_no_earlier_number_and_a_killed_analysis_goes_on(tmp_path):
    labels = torch.tensor([0, 1, 2, 0])
    whole = interaction_strength(entangled, images(4), labels, SMALL)
    calls = []

    def dying(batch):
        calls.append(len(batch))
        if len(calls) > 60:
            raise KeyboardInterrupt
        return entangled(batch)

    with pytest.raises(KeyboardInterrupt):
        interaction_strength(dying, images(4), labels, SMALL, store=tmp_path / "i.npy", batch_size=100)
    assert 0 < len(np.load(tmp_path / "i.npy")) < 4
    seen = []
    again = interaction_strength(
        lambda batch: seen.append(len(batch)) or entangled(batch), images(4), labels, SMALL, store=tmp_path / "i.npy"
    )
    assert again == whole and sum(seen) < 4 * SMALL.forwards


def test_a_damaged_store_is_made_anew(tmp_path):
    (tmp_path / "i.npy").write_bytes(b"\x93NUMPY damaged")
    labels = torch.tensor([0, 1])
    assert interaction_strength(entangled, images(2), labels, SMALL, store=tmp_path / "i.npy") == interaction_strength(
        entangled, images(2), labels, SMALL
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"grid": (1, 5)}, "at least 2 cells"), ({"pairs": 0}, "at least 1"), ({"grid": (2, 2), "pairs": 7}, "only 6")],
)
def test_impossible_samplings_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        Sampling(**arguments)


def test_a_grid_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match="does not divide"):
        interactions_of(additive, images()[0], 0, Sampling(grid=(3, 4), pairs=2, contexts=1), 0, 8)

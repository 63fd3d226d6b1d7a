"""Subsets: as many of every class, the same for ever, and lists that cannot be used with other data."""

import numpy as np
import pytest

from a2mim.data import TrainLoader, open_dataset
from a2mim.evaluation.subsets import draw_subset, read_list, subset_of, write_list


@pytest.mark.parametrize(
    ("size", "counts"),
    [("10%", [10, 5, 1]), (0.1, [10, 5, 1]), ("7", [7, 7, 3]), (7, [7, 7, 3]), ("100%", [100, 50, 3])],
)
def test_every_class_gives_its_share_or_number_and_at_least_one(size, counts):
    labels = np.random.default_rng(0).permutation(np.repeat([4, 9, 70], [100, 50, 3]))
    rows = draw_subset(labels, size)
    assert np.unique(labels[rows], return_counts=True)[1].tolist() == counts
    assert (np.diff(rows) > 0).all()


def test_the_draw_is_the_same_for_ever_and_differs_by_seed():
    labels = np.repeat([0, 1], 50)
    # raw numbers of PCG64 are promised to stay over versions and machines
    assert draw_subset(labels, "3").tolist() == [3, 11, 20, 53, 59, 92]
    assert draw_subset(labels, "3", seed=1).tolist() != draw_subset(labels, "3").tolist()


@pytest.mark.parametrize("size", ["0%", "101%", "0", "-1", "many", 2.5, "1.5"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match="must be a share of each class"):
        draw_subset([0, 1], size)


def test_a_subset_shows_the_images_of_its_rows_with_their_own_crops():
    dataset = open_dataset("photos", "train")
    rows = np.arange(0, 4096, 64)
    part = subset_of(dataset, rows)
    assert len(part) == 64 and part.shard_sizes.sum() == 64 and part.fingerprint != dataset.fingerprint
    assert np.array_equal(part.labels, dataset.labels[rows]) and np.array_equal(part.keys, dataset.keys[rows])
    assert np.array_equal(part.read(5), dataset.read(int(rows[5]))) and part.name(5) == dataset.name(int(rows[5]))
    whole, some = ({}, {})
    for found, data in ((whole, dataset), (some, part)):
        for batch in TrainLoader(data, 32, 64):
            for i, image in zip(batch["ids"].tolist(), batch["images"], strict=True):
                found[int(data.keys[i])] = image.clone()
    assert len(some) == 64 and all(np.array_equal(image, whole[key]) for key, image in some.items())


def test_a_list_is_read_back_and_refused_for_other_data(tmp_path):
    dataset = open_dataset("photos", "train")
    rows = draw_subset(dataset.labels, "2")
    path = write_list(dataset, rows, tmp_path / "lists" / "two.tsv")
    assert np.array_equal(read_list(path, dataset), rows)
    first = path.read_text().splitlines()[0].split("\t")
    assert (int(first[0]), int(first[1]), first[2]) == (rows[0], dataset.labels[rows[0]], dataset.name(int(rows[0])))
    with pytest.raises(ValueError, match="do not agree"):
        read_list(path, subset_of(dataset, np.arange(100)))
    path.write_text("not a list\n")
    with pytest.raises(ValueError, match="no list of a2mim"):
        read_list(path, dataset)

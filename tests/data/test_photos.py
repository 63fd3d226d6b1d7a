import subprocess
import sys

import numpy as np
import pytest

from a2mim.data import EvalLoader, open_dataset, photos


def test_sizes_labels_and_balance():
    for split, count in (("train", 4096), ("test", 1024)):
        dataset = open_dataset("photos", split)
        assert len(dataset) == count and dataset.splits == ("train", "test")
        share = np.bincount(dataset.labels, minlength=len(dataset.class_names))
        assert len(share) == len(photos.PHOTOGRAPHS) and share.max() - share.min() <= 1


def test_train_and_test_share_no_pixel():
    """Every photograph's columns are numbered; the halves must be disjoint, whole, and crops must stay in theirs."""
    for photo in photos.PHOTOGRAPHS:
        left, right = photos.half(photo, "train"), photos.half(photo, "test")
        whole = photos._photograph(photo).shape
        assert left.shape[1] + right.shape[1] == whole[1] and left.shape[0] == right.shape[0] == whole[0]
    for split in ("train", "test"):
        dataset = open_dataset("photos", split)
        photo, x, y, side = dataset.store.boxes.T
        heights, widths = np.array([photos.half(name, split).shape[:2] for name in photos.PHOTOGRAPHS])[photo].T
        assert (x >= 0).all() and (y >= 0).all() and (x + side <= widths).all() and (y + side <= heights).all()


def test_halves_are_cut_from_the_right_side():
    pixels = photos._photograph("coffee.png").astype(float)
    for split, columns in (("train", slice(0, 300)), ("test", slice(300, 600))):
        half, original = photos.half("coffee.png", split), pixels[:, columns]
        balanced = (original * (photos.MEAN / original.mean((0, 1)))).round().clip(0, 255)
        assert np.abs(half - balanced).max() <= 1


def test_crops_are_frozen():
    """Of this code's first version; numbers in docs and READMEs were measured on these crops."""
    dataset = open_dataset("photos")
    assert dataset.fingerprint == FINGERPRINT
    assert [tuple(dataset.store.boxes[i].tolist()) for i in (0, 1, 4095)] == BOXES


FINGERPRINT = "85773387ad01ceb5"
BOXES = [(0, 151, 201, 105), (1, 123, 294, 116), (7, 112, 241, 140)]


def test_reading_twice_gives_the_same_and_hurts_nothing():
    dataset = open_dataset("photos")
    first = dataset.read(5)
    again = dataset.read(5)
    assert np.array_equal(first, again) and first.ndim == 3 and 80 <= first.shape[0] == first.shape[1] <= 144
    first[:] = 0
    assert np.array_equal(dataset.read(5), again)
    assert dataset.name(5).startswith("coins[")


def test_mean_colour_alone_does_not_name_the_photograph():
    means = {}
    for split in ("train", "test"):
        dataset = open_dataset("photos", split)
        batches = EvalLoader(dataset, 32, resize=None, interpolation="bilinear", batch_size=256)
        means[split] = (
            np.concatenate([batch["images"].float().mean((2, 3)).numpy() for batch in batches]),
            dataset.labels,
        )
    (train, train_labels), (test, test_labels) = means["train"], means["test"]
    nearest = np.argmin(((test[:, None] - train[None]) ** 2).sum(-1), axis=1)
    assert 0.2 < (train_labels[nearest] == test_labels).mean() < 0.5


def test_scikit_image_is_not_imported():
    code = "import sys, a2mim.data as d; d.open_dataset('photos').read(0); print('skimage' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(ValueError, match="split='val' of the built-in photographs"):
        open_dataset("photos", "val")
    photos._photograph.cache_clear()
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"astronaut\.png .* pip install scikit-image"):
        open_dataset("photos")

"""Which images calibrate BatchNorm: spread, balanced, the same ones for every caller and every batch size."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from a2mim.batchnorm import calibrate_batchnorm
from a2mim.data import open_dataset
from a2mim.embedding import embed
from a2mim.engine.judging import Judge
from a2mim.evaluation.calibration import BATCH, calibration_loader, calibration_rows
from a2mim.evaluation.context import EvalContext


def labelled(labels):
    return SimpleNamespace(labels=np.asarray(labels))


def test_a_class_sorted_set_gives_images_of_every_class_in_every_batch():
    rows = calibration_rows(labelled(np.repeat(np.arange(16), 500)), 1024)
    assert len(np.unique(rows)) == 1024
    classes = rows.reshape(-1, BATCH) // 500
    assert (np.bincount(classes.ravel()) == 64).all()
    assert all(len(np.unique(batch)) == 16 for batch in classes)


def test_the_images_of_a_class_are_spread_over_the_class():
    rows = np.sort(calibration_rows(labelled(np.repeat([0, 1], 1000)), 100))
    assert np.array_equal(rows // 20, np.arange(100))


def test_rare_classes_give_all_they_have_and_the_others_the_rest():
    labels = np.repeat([3, 7, 9], [2, 500, 500])
    assert np.bincount(labels[calibration_rows(labelled(labels), 102)]).tolist() == [0, 0, 0, 2, 0, 0, 0, 50, 0, 50]


def test_without_labels_the_rows_are_one_of_each_part_of_the_set_in_mixed_order():
    rows = calibration_rows(labelled(np.full(5000, -1)), 50)
    assert np.array_equal(np.sort(rows) // 100, np.arange(50)) and (np.diff(rows) < 0).any()


def test_images_without_a_label_keep_their_share():
    labels = np.concatenate([np.full(900, -1), np.repeat([0, 1], 50)])
    chosen = labels[calibration_rows(labelled(labels), 100)]
    assert [(chosen == value).sum() for value in (-1, 0, 1)] == [90, 5, 5]


@pytest.mark.parametrize("n", [1, 2, 7, 30, 100])
def test_rows_are_distinct_in_range_and_a_function_of_the_seed(n):
    dataset = labelled(np.repeat([-1, 0, 2], 10))
    rows = calibration_rows(dataset, n, 4)
    assert len(set(rows.tolist())) == len(rows) == min(n, 30) and set(rows.tolist()) <= set(range(30))
    assert np.array_equal(rows, calibration_rows(dataset, n, 4))


def test_rows_are_chosen_among_those_named():
    among = np.array([5, 17, 18])
    assert sorted(calibration_rows(labelled(np.zeros(20)), 10, among=among)) == [5, 17, 18]


@pytest.fixture
def sorted_folder(tmp_path):
    """1,200 grey images in two classes, dark first: the first 1,024 are 600 dark ones and 424 bright ones."""
    for name, value in (("a", 40), ("b", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(600):
            Image.new("RGB", (8, 8), (value + i % 9,) * 3).save(tmp_path / "data" / name / f"{i:04}.png")
    return str(tmp_path / "data")


def test_the_judge_calibrates_on_the_whole_of_a_class_sorted_set(sorted_folder):
    dataset = open_dataset(sorted_folder)
    data = SimpleNamespace(mean=(0.0,) * 3, std=(1.0,) * 3, img_size=8)
    judge = SimpleNamespace(train_images=5000, test_images=5000, k=3)
    settings = SimpleNamespace(command="pretrain", judge=judge, data=data, seed=0)
    batches = list(Judge(settings, dataset, dataset, torch.device("cpu")).calibration_batches())
    bright = torch.cat([batch.mean(dim=(1, 2, 3)) > 0.5 for batch in batches])
    assert len(bright) == 1024 and int(bright.sum()) == 512
    assert all(20 <= int((batch.mean(dim=(1, 2, 3)) > 0.5).sum()) <= 44 for batch in batches)
    norm = nn.BatchNorm2d(3)
    calibrate_batchnorm(norm, batches)
    assert norm.running_mean.numpy() == pytest.approx([(40 + 200 + 8) / 2 / 255] * 3, abs=2e-3)


@pytest.mark.filterwarnings("ignore:.*is also the training set")
def test_the_batch_size_changes_no_statistics(sorted_folder, tmp_path):
    options = {"device": "cpu", "img_size": 32}
    made = [EvalContext("resnet10t", sorted_folder, sorted_folder, batch_size=size, **options) for size in (7, 200)]
    assert [context.take_statistics() for context in made] == [1024, 1024]
    first, second = (context.model.state_dict() for context in made)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    rows = []
    for size in (7, 200):
        embed("resnet10t", sorted_folder, tmp_path / f"{size}.npz", batch_size=size, **options)
        rows.append(np.load(tmp_path / f"{size}.npz")["embedding"])
    np.testing.assert_allclose(*rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 65, 129])
def test_a_remainder_of_one_image_does_not_stand_alone(tmp_path, count):
    (tmp_path / "d").mkdir()
    for i in range(count):
        Image.new("RGB", (4, 4), (i,) * 3).save(tmp_path / "d" / f"{i:04}.png")
    loader = calibration_loader(open_dataset(str(tmp_path / "d")), 4, None, "bilinear")
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))  # one value an image and channel
    assert calibrate_batchnorm(model, (batch["images"].float() for batch in loader)) == count
    assert model[1].running_mean[0] == pytest.approx((count - 1) / 2, abs=1e-3)

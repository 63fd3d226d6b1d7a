"""The record of how images are prepared: what files say is what is read back, and nonsense is one sentence."""

import json

import pytest
import torch

from a2mim.pixels import Preprocessing, denormalize, normalize

RECORD = Preprocessing((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), (64, 48), "bicubic", 0.875)


def test_a_record_survives_json():
    assert Preprocessing.of(json.loads(json.dumps(RECORD.to_dict()))) == RECORD


def test_the_file_format_is_that_of_older_files():
    plain = {"mean": [0.5], "std": [0.25], "img_size": [32, 32], "interpolation": "bilinear"}
    assert Preprocessing.of(plain).to_dict() == plain
    assert Preprocessing.of({"mean": (0.5,), "std": (0.25,)}, 32).to_dict() == plain


def test_another_number_of_channels_has_the_average_of_mean_and_deviation():
    assert RECORD.for_channels(2).to_dict() == RECORD.to_dict() | {
        "mean": [pytest.approx(0.5)] * 2,
        "std": [pytest.approx(0.2)] * 2,
    }
    assert RECORD.for_channels(3) is RECORD


def test_a_record_normalises_as_the_function_does_and_denormalize_undoes_it():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    found = RECORD.normalize(images)
    assert torch.equal(found, normalize(images, RECORD.mean, RECORD.std))
    assert torch.equal(denormalize(found, RECORD.mean, RECORD.std), images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": [0.1, 0.0, 0.2]}, "must be above 0"),
        ({"mean": [0.5]}, "mean has 1 values and std 3"),
        ({"mean": [0.5, float("nan"), 0.5]}, "must be a finite number"),
        ({"mean": "0.5"}, "must be a list of numbers"),
        ({"mean": [True, 0.5, 0.5]}, "must be a finite number"),
        ({"img_size": [64]}, "must be a number of pixels"),
        ({"img_size": [64, 0]}, "must be a number of pixels"),
        ({"img_size": None}, "states no img_size"),
        ({"interpolation": "__import__('os')"}, "is unknown; choose from bilinear"),
        ({"crop_pct": -1}, "crop_pct"),
    ],
)
def test_values_that_no_image_has_are_refused_in_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        Preprocessing.of(RECORD.to_dict() | changes)
    assert "\n" not in str(error.value)

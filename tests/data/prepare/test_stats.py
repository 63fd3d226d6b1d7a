import math
from fractions import Fraction

import numpy as np
import pytest
from small_images import encoded, npy, picture, write_tar

from a2mim.data import open_dataset
from a2mim.data.faults import UnreadableData
from a2mim.data.prepare.stats import measure_stats, of_image


def slowly(images: list[np.ndarray], unit: int) -> tuple[list[float], list[float]]:
    """Mean and std of each channel in Python's whole numbers and fractions."""
    means, deviations = [], []
    for c in range(images[0].shape[2]):
        values = [int(v) for image in images for v in image[:, :, c].reshape(-1)]
        mean = Fraction(sum(values), len(values))
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        means.append(float(mean / unit))
        deviations.append(math.sqrt(variance) / unit)
    return means, deviations


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 5)])
def test_the_statistics_are_exact(tmp_path, dtype, channels):
    """Images of several sizes: each pixel counts alike, not each image."""
    rng, top = np.random.default_rng(0), np.iinfo(dtype).max
    images = [rng.integers(top // 2, top, (3 + i, 9 - i, channels), dtype) for i in range(5)]
    images.append(np.full((4, 4, channels), top, dtype))
    dataset = open_dataset(
        write_tar(tmp_path / "a.tar", [(f"{i}.npy", npy(v)) for i, v in enumerate(images)]), in_chans=channels
    )
    found = measure_stats(dataset)
    mean, std = slowly(images, top)
    assert found.mean == mean and np.allclose(found.std, std, rtol=1e-14)
    assert found.images == 6 and found.pixels == sum(image[..., 0].size for image in images)
    assert found.least == [min(int(i[..., c].min()) for i in images) for c in range(channels)]
    assert found.greatest == [top] * channels


def test_large_images_add_up_exactly_too():
    """More than one block of the sum, all at the greatest value, where a float would round first."""
    found = of_image(np.full((1100, 1000, 1), 65535, np.uint16))
    assert found.sums == [65535 * 1_100_000] and found.squares == [65535**2 * 1_100_000] and found.std == [0.0]


def test_workers_change_nothing_and_unreadable_images_are_counted(tmp_path):
    members = [(f"{i:03d}.jpg", encoded(picture(i))) for i in range(130)] + [("bad.jpg", b"<html>")]
    dataset = open_dataset(write_tar(tmp_path / "a.tar", members))
    here, there = measure_stats(dataset), measure_stats(dataset, num_workers=2)
    assert here == there and here.images == 130 and here.faults == {"not an image": 1}
    with pytest.raises(UnreadableData, match="none of 1 images can be read"):
        measure_stats(open_dataset(write_tar(tmp_path / "b.tar", members[-1:])))


def test_the_lines_are_a_recipes_data(tmp_path):
    dataset = open_dataset(
        write_tar(tmp_path / "a.tar", [("0.npy", npy(np.zeros((4, 4, 1), np.float32)))]),
        in_chans=1,
        value_range=(-1, 1),
    )
    settings = {}
    exec("\n".join(measure_stats(dataset).lines((-1.0, 1.0))), settings)
    half = 32768 / 65535
    assert settings["data"] == {"in_chans": 1, "value_range": (-1.0, 1.0), "mean": (round(half, 6),), "std": (0.0,)}

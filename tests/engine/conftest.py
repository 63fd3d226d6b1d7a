"""Tiny recipes on tiny folders of images: a step takes milliseconds."""

import numpy as np
import pytest
from small_recipe import RECIPE

import a2mim


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of 24 unlabelled PNGs: three steps of eight an epoch."""
    import mmcv

    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i in range(24):
        coarse = generator.integers(0, 256, (6, 6, 3), np.uint8)
        mmcv.imwrite(mmcv.imresize(coarse, (48, 40)), str(folder / f"{i:02d}.png"))
    return folder


@pytest.fixture
def run(recipe, images, tmp_path):
    """run("name", **overrides): pre-trains in tmp_path/name and returns (its folder, its summary)."""

    def start(name, **arguments):
        arguments = {"data": images, "device": "cpu", "num_workers": 0} | arguments
        return tmp_path / name, a2mim.pretrain(recipe, work_dir=tmp_path / name, **arguments)

    return start


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """train/ and test/ with three classes: 24 and 12 PNGs, whose mean colour tells the class, roughly."""
    import mmcv

    folder = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(1)
    for split, number in (("train", 24), ("test", 12)):
        for i in range(number):
            image = generator.integers(0, 160, (40, 44, 3), np.uint8)
            image[..., i % 3] += 80
            mmcv.imwrite(image, str(folder / split / "abc"[i % 3] / f"{i:02d}.png"))
    return folder

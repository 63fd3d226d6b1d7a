import random
import sys

import numpy as np
import pytest
import torch
from mmcv.transforms import TRANSFORMS, BaseTransform

from a2mim.data import TrainLoader
from a2mim.data.batches import RandomCrops
from a2mim.data.transforms import TransformError, Transforms

GRAY = dict(type="RandomGrayscale", prob=1.0, keep_channels=True)


class Noisy(BaseTransform):
    """Draws from every generator a transform could use."""

    def transform(self, results):
        image = results["img"].copy()
        image[0, 0] = np.random.randint(256), random.randrange(256), torch.randint(256, ()).item()
        return {**results, "img": image}


class Recording(BaseTransform):
    def __init__(self):
        self.seen = []

    def transform(self, results):
        self.seen.append(results["img"].copy())
        return results


class Broken(BaseTransform):
    def __init__(self, change):
        self.change = change

    def transform(self, results):
        return self.change(results)


def test_draws_are_keyed_and_the_global_generators_untouched():
    transforms, pixels = Transforms([Noisy()]), np.zeros((4, 4, 3), np.uint8)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = transforms(pixels, seed=2**53 - 1)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    assert np.array_equal(first, transforms(pixels, seed=2**53 - 1))
    others = {tuple(transforms(pixels, seed=seed)[0, 0]) for seed in range(50)}
    assert len(others) > 45


def test_generators_are_restored_when_a_transform_fails():
    random.seed(3)
    before = random.getstate()
    with pytest.raises(ZeroDivisionError):
        Transforms([Broken(lambda results: 1 / 0)])(np.zeros((2, 2, 3), np.uint8), seed=0)
    assert random.getstate() == before


def test_transforms_get_the_whole_image_in_rgb_before_the_crop(dataset):
    recording = Recording()
    train = TrainLoader(dataset, 8, 40, transforms=[recording])
    (batch,) = train
    for image, i in zip(recording.seen, batch["ids"].tolist(), strict=True):
        assert np.array_equal(image, dataset.read(i))


def test_registered_and_shipped_transforms_are_built_from_configs(dataset):
    @TRANSFORMS.register_module(name="TestInvert", force=True)
    class Invert(BaseTransform):
        def transform(self, results):
            return {**results, "img": 255 - results["img"]}

    plain, inverted = (next(iter(TrainLoader(dataset, 8, 8, transforms=t))) for t in ([], [dict(type="TestInvert")]))
    difference = (255 - plain["images"].int() - inverted["images"].int()).abs()
    assert difference.max() <= 1
    gray = next(iter(TrainLoader(dataset, 8, 8, transforms=[GRAY])))["images"]
    assert torch.equal(gray[:, 0], gray[:, 2])


def test_a_resizing_transform_is_allowed(dataset):
    train = TrainLoader(dataset, 8, 8, transforms=[dict(type="Resize", scale=(20, 10))])
    assert next(iter(train))["images"].shape == (8, 3, 8, 8)


def to_float(results):
    return {**results, "img": results["img"].astype(np.float32)}


@pytest.mark.parametrize(
    "change, num_workers, message",
    [
        (to_float, 0, r"^the transform Broken made an image of float32 \(40, 56, 3\); it must stay uint8 \(H, W, 3\)"),
        (to_float, 1, r"^the transform Broken made an image of float32"),
        (lambda r: {**r, "img": r["img"][:, :, 0]}, 0, r"an image of uint8 \(40, 56\)"),
        (lambda r: None, 0, "returned no results"),
    ],
)
def test_a_result_that_is_no_image_is_one_sentence(dataset, change, num_workers, message):
    with pytest.raises(TransformError, match=message):
        next(iter(TrainLoader(dataset, 8, 8, transforms=[Broken(change)], num_workers=num_workers)))


def test_a_misspelt_transform_names_the_nearest(dataset):
    with pytest.raises(ValueError, match=r"'RandomGreyscale' is not in mmcv's registry; did you mean RandomGrayscale"):
        TrainLoader(dataset, 8, 8, transforms=[dict(type="RandomGreyscale")])
    with pytest.raises(ValueError, match="cannot be built"):
        TrainLoader(dataset, 8, 8, transforms=[dict(type="RandomGrayscale", probability=1)])


def test_an_empty_list_imports_nothing():
    crops = RandomCrops((8, 8), (0.5, 1), (1, 1), 0.5, "bilinear", Transforms(()), 0)
    loaded = set(sys.modules)
    crops(np.zeros((9, 9, 3), np.uint8), np.full(crops.draws, 0.5))
    assert set(sys.modules) == loaded

"""timm's augmentations and repeated augmentation stay functions of (seed, epoch, sample)."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from a2mim.data import TrainLoader, open_dataset
from a2mim.data.augment import Augment, _operations
from a2mim.data.plan import Plan
from a2mim.data.repeated import repeat_order, repeated
from a2mim.data.transforms import TransformError

IMAGE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8))
WORDS = ["rand-m9-mstd0.5-inc1", "trivial", "original", ""]


@pytest.mark.parametrize("words", WORDS)
def test_an_augmentation_is_a_function_of_the_seed_and_leaves_the_global_generators_alone(words):
    augment = Augment(words, 0.4, 32, (0.5, 0.5, 0.5), "bicubic")
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    made = [augment(IMAGE, seed) for seed in (1, 2, 3, 4, 1, 2, 3, 4)]
    assert all(image.dtype == torch.uint8 and image.shape == IMAGE.shape for image in made)
    assert all(torch.equal(a, b) for a, b in zip(made[:4], made[4:], strict=True))
    assert len({image.numpy().tobytes() for image in made}) >= 3
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_colour_jitter_is_left_out_where_there_is_randaugment_as_in_timm():
    with_jitter, without = (Augment("rand-m9-mstd0.5-inc1", j, 32, (0.5,) * 3, "bilinear") for j in (0.4, 0.0))
    assert all(torch.equal(with_jitter(IMAGE, seed), without(IMAGE, seed)) for seed in range(8))


@pytest.mark.parametrize("words", ["rand-m10-inc1", "rand-m9-mstd2-inc1", "original", "originalr", "v0r", "augmix-m10"])
def test_a_policy_that_keeps_no_bit_of_a_value_makes_a_black_image(words):
    """Pillow refuses to posterize to 0 bits, which timm asks for at its greatest strength."""
    augment = Augment(words, 0.0, 32, (0.5,) * 3, "bicubic")
    operations = [op for op in _operations(augment.transform) if "oster" in op.name]
    assert operations
    picture = Image.fromarray(IMAGE.permute(1, 2, 0).numpy())
    for operation in operations:
        operation.prob, operation.level_fn = 1.0, lambda level, hparams: (0,)
        assert not np.asarray(operation(picture)).any()
        operation.level_fn = lambda level, hparams: (4,)
        assert np.array_equal(np.asarray(operation(picture)), np.asarray(picture) & 0xF0)


def test_words_that_timm_does_not_know_are_one_sentence():
    with pytest.raises(TransformError, match=r"auto_augment='rand-x9' is not understood by timm"):
        Augment("rand-x9", 0.0, 32, (0.5,) * 3, "bilinear")


def batches(loader, steps):
    return [(b["images"].clone(), b["labels"].clone(), b["ids"].clone()) for b in islice(loader, steps)]


def test_augmented_and_repeated_batches_do_not_depend_on_workers_or_on_where_one_begins():
    dataset = open_dataset("photos", "test")
    augment = Augment("rand-m9-mstd0.5-inc1", 0.0, 32, (0.5,) * 3, "bilinear")
    made = {}
    for workers in (0, 2):
        loader = TrainLoader(dataset, 32, 12, augment=augment, repeats=3, num_workers=workers)
        made[workers] = batches(loader, 3)
    later = TrainLoader(dataset, 32, 12, augment=augment, repeats=3)
    later.seek(2)
    for a, b in [*zip(made[0], made[2], strict=True), (made[0][2], batches(later, 1)[0])]:
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_copies_of_an_image_share_its_label_and_are_cropped_each_for_itself():
    dataset = open_dataset("photos", "test")
    images, labels, ids = batches(TrainLoader(dataset, 32, 12, repeats=3), 1)[0]
    assert len(set((ids % len(dataset)).tolist())) == 4
    assert labels.tolist() == dataset.labels[ids % len(dataset)].tolist()
    assert len({image.numpy().tobytes() for image in images}) == 12


def test_copies_go_to_different_processes_and_an_epoch_shows_each_chosen_image_as_often_as_was_asked():
    plan = Plan([30], 6)
    ranks = [[plan.batch(0, step, rank, 3, 3) for step in range(plan.steps)] for rank in range(3)]
    assert all(np.array_equal(a % 30, b % 30) for a, b in zip(ranks[0], ranks[1], strict=True))
    everything = np.concatenate([part for rank in ranks for part in rank])
    assert len(everything) == len(set(everything.tolist())) == 30
    assert np.unique(everything % 30, return_counts=True)[1].tolist() == [3] * 10
    assert len(repeat_order(np.arange(31), 3)) == 31


def test_copies_have_keys_of_their_own_and_the_first_is_the_image_itself():
    dataset = open_dataset("photos", "test")
    copies = repeated(dataset, 2)
    n = len(dataset)
    assert (copies.keys[:n] == dataset.keys).all()
    assert len(np.unique(copies.keys)) == 2 * n
    assert copies.name(n + 3) == dataset.name(3)
    assert np.array_equal(copies.read(n + 3), dataset.read(3))

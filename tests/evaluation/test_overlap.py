"""Test images that training has: found when they are there, exactly or nearly, and not when they are not."""

import io

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from a2mim.data import open_dataset
from a2mim.evaluation.overlap import find_overlap, overlap_sentence, signatures


def photographs(count=60, size=64, split="train"):
    dataset = open_dataset("photos", split)
    pictures = [torch.from_numpy(dataset.read(i)).permute(2, 0, 1)[None].float() for i in range(count)]
    return torch.cat([interpolate(p, size=(size, size), mode="bilinear", antialias=True) for p in pictures]).byte()


def found(train, test):
    return find_overlap(signatures(train).numpy(), signatures(test).numpy())


def recompressed(images, quality=40):
    out = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
        out.append(torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1))
    return torch.stack(out)


def test_copies_are_found_by_their_bytes_wherever_they_lie():
    images = photographs()
    pairs = found(images, images[[50, 3, 17]])
    assert pairs == {"exact": [(0, 50), (1, 3), (2, 17)], "near": []}


def test_one_changed_value_is_no_longer_exact_but_near():
    images = photographs()
    changed = images[5:6].clone()
    changed[0, 1, 20, 30] ^= 1
    assert found(images, changed) == {"exact": [], "near": [(0, 5)]}


def test_recompressed_and_resized_copies_are_near():
    images = photographs(40)
    smaller = interpolate(
        interpolate(images.float(), size=(48, 48), mode="area"), size=(64, 64), mode="bilinear"
    ).byte()
    for copies, least in ((recompressed(images), 33), (smaller, 33)):
        near = found(images, copies)["near"]
        assert len(near) >= least and all(i == j for i, j in near)


def test_strangers_are_not_near():
    # other halves of the same photographs, and noise; a few crops of a smooth half may look alike
    pairs = found(photographs(400), photographs(200, split="test"))
    assert pairs["exact"] == [] and len(pairs["near"]) <= 1
    noise = torch.randint(256, (200, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert found(noise[:100], noise[100:]) == {"exact": [], "near": []}


def test_flat_images_have_no_hash_and_other_channels_and_depths_do():
    flat = torch.full((3, 3, 32, 32), 90, dtype=torch.uint8)
    flat[1] += 1
    assert found(flat[:1], flat[1:]) == {"exact": [(1, 0)], "near": []}
    for images in (torch.rand(6, 5, 32, 32), (torch.rand(6, 1, 32, 32) * 65535).to(torch.uint16)):
        assert found(images, images[2:3])["exact"] == [(0, 2)]


def test_an_empty_set_overlaps_with_nothing():
    nothing = np.empty((0, 5), np.int64)
    some = signatures(photographs(2)).numpy()
    assert find_overlap(nothing, some) == find_overlap(some, nothing) == {"exact": [], "near": []}


def test_the_sentence_counts_and_names():
    pairs = {"exact": [(0, 4), (1, 5), (2, 6), (3, 7)], "near": []}
    sentence = overlap_sentence(pairs, "test-{}".format, "train-{}".format)
    assert sentence.startswith("4 test images are also in the training set (test-0 = train-4; ") and "…" in sentence
    assert overlap_sentence({"exact": [], "near": []}, str, str) == ""

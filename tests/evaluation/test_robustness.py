"""Damage that is exactly what it says, from its seed alone; calibration against slow loops."""

import numpy as np
import pytest
import torch

from a2mim.evaluation import damage, evaluate, robustness
from a2mim.evaluation.damage import CORRUPTIONS, corrupt, occlude, shuffle_tiles

IMAGE = np.random.default_rng(0).integers(40, 216, (64, 64, 3), np.uint8)
SMOOTH = np.repeat(np.linspace(40, 215, 64)[:, None], 64, 1)[..., None].repeat(3, 2).astype(np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_repeats_grows_with_severity_and_leaves_the_image_alone(name):
    kept = SMOOTH.copy()
    images = [corrupt(SMOOTH, name, s, seed=3) for s in range(1, 6)]
    assert all(x.shape == SMOOTH.shape and x.dtype == np.uint8 for x in images)
    assert (corrupt(SMOOTH, name, 5, seed=3) == images[4]).all() and (kept == SMOOTH).all()
    distances = [np.abs(x.astype(float) - SMOOTH).mean() for x in images]
    assert distances[0] > 0 and distances[4] > distances[0]
    if "noise" in name:
        assert (corrupt(SMOOTH, name, 5, seed=4) != images[4]).any()


def test_constants_are_those_of_the_paper():
    grey = np.full((256, 256, 3), 128, np.uint8)
    assert (corrupt(grey, "gaussian_noise", 1) / 255).std() == pytest.approx(0.08, rel=0.02)
    shot = corrupt(grey, "shot_noise", 1) / 255
    assert shot.std() == pytest.approx((128 / 255 / 60) ** 0.5, rel=0.02)
    assert (corrupt(grey, "impulse_noise", 5) != 128).mean() == pytest.approx(0.27, abs=0.01)
    assert (corrupt(grey, "speckle_noise", 1) / 255).std() == pytest.approx(0.15 * 128 / 255, rel=0.02)
    assert corrupt(grey, "brightness", 2)[0, 0, 0] == pytest.approx(128 + 51, abs=1)
    two = np.stack([np.full((8, 8), 100), np.full((8, 8), 100), np.full((8, 8), 100)], 2).astype(np.uint8)
    two[:4] = 200
    assert set(np.unique(corrupt(two, "contrast", 1))) == {130, 170}
    tiles = corrupt(IMAGE, "pixelate", 5)
    assert (tiles[0:4, 0:4] == tiles[0, 0]).all()


def test_unknown_corruptions_are_refused():
    with pytest.raises(ValueError, match="choose one of gaussian_noise"):
        corrupt(IMAGE, "fog", 1)
    with pytest.raises(ValueError, match="1 to 5"):
        corrupt(IMAGE, "contrast", 6)


def test_shuffled_tiles_are_the_same_tiles():
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).float()
    moved = shuffle_tiles(images, 4, [0, 1])

    def tiles(x):
        return sorted(
            tuple(x[:, i : i + 2, j : j + 2].flatten().tolist()) for i in range(0, 8, 2) for j in range(0, 8, 2)
        )

    for a, b in zip(images, moved, strict=True):
        assert tiles(a) == tiles(b) and not torch.equal(a, b)
    assert torch.equal(shuffle_tiles(images, 1, [0, 1]), images)
    assert torch.equal(moved[1], shuffle_tiles(images[1:], 4, [1])[0])  # by its own seed, not by its place in the batch
    with pytest.raises(ValueError, match="3 x 3 equal tiles"):
        shuffle_tiles(images, 3, [0, 1])


def test_occlusion_hides_exactly_so_many_cells_most_salient_first():
    images = torch.ones(2, 3, 16, 16)
    for ratio in (0, 0.3, 0.9, 1):
        hidden = occlude(images, ratio, (4, 4), [0, 1]) == 0
        assert (hidden.sum((1, 2, 3)) == round(16 * ratio) * 16 * 3).all()
    salience = torch.arange(16.0).expand(2, -1)
    assert (occlude(images, 0.25, (4, 4), [0, 1], salience)[0, 0, 12:] == 0).all()
    assert (occlude(images, 0.25, (4, 4), [0, 1], -salience)[0, 0, :4] == 0).all()


def batches():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    images = torch.randint(0, 60, (40, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images[labels == 1, :, :16] += 120  # bright above, or not
    return [(images[i : i + 16], labels[i : i + 16]) for i in range(0, 40, 16)]


def as_float(images):
    return images.float() / 255 - 0.35


def by_layout(x):
    """Bright above and not below: places matter."""
    score = x[:, :, :16].mean((1, 2, 3)) - x[:, :, 16:].mean((1, 2, 3))
    return torch.stack([0.2 - score, score - 0.2], 1)


def by_mean(x):
    """A bag of colours: places do not matter."""
    mean = x.mean((1, 2, 3)) + 0.35
    return torch.stack([0.2 - mean, mean - 0.2], 1)


def by_peak(x):
    """Whether any pixel is bright."""
    peak = x.amax((1, 2, 3))
    return torch.stack([0.05 - peak, peak - 0.05], 1)


def test_a_bag_keeps_its_accuracy_when_tiles_are_shuffled_and_a_layout_does_not():
    clean = [(as_float(x), y) for x, y in batches()]
    bag, layout = robustness.patch_shuffle(by_mean, clean), robustness.patch_shuffle(by_layout, clean)
    assert set(bag.accuracy.values()) == {100.0} and bag.ratio[8] == 1 and list(bag.accuracy) == [1, 2, 4, 8, 16]
    assert layout.clean == 100 and layout.accuracy[8] < 80
    assert robustness.patch_shuffle(by_layout, clean) == layout


def test_occlusion_falls_from_clean_and_salience_decides():
    clean = [(as_float(x), y) for x, y in batches()]
    norms = lambda x: torch.nn.functional.adaptive_avg_pool2d(x.mean(1), (4, 4)).flatten(1)  # noqa: E731
    random, most, least = (
        robustness.occlusion(by_peak, clean, (4, 4), how, norms) for how in ("random", "most", "least")
    )
    assert random.clean == 100 == random.accuracy[0.0] and len(random.accuracy) == 10
    # half of the cells of half of the images are bright: hidden first they are gone at 0.5, hidden last never
    assert (most.accuracy[0.4], most.accuracy[0.5], least.accuracy[0.9]) == (100, 50, 100)
    assert most.mean < random.mean < least.mean
    assert max(robustness.patch_shuffle(by_layout, clean).spread.values()) > 0  # seeds draw other tiles
    with pytest.raises(ValueError, match="norms of the cells"):
        robustness.occlusion(by_layout, clean, (4, 4), "most")


def test_corruptions_are_told_with_clean_error_and_difference():
    found = [robustness.corruption(by_layout, batches(), name, as_float) for name in ("contrast", "gaussian_noise")]
    assert all(d.clean == 100 and list(d.accuracy) == [0, 1, 2, 3, 4, 5] for d in found)
    told = robustness.corruption_errors(found)
    assert told["relative_error"] == pytest.approx(told["error"]) and told["error"] > 10


def test_ece_is_its_definition():
    torch.manual_seed(0)
    probabilities, labels = (3 * torch.randn(200, 4)).softmax(1).double(), torch.randint(0, 4, (200,))
    confidence, told = probabilities.max(1)
    wanted = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            wanted += (
                inside.double().mean() * ((told == labels)[inside].double().mean() - confidence[inside].mean()).abs()
            )
    assert robustness.expected_calibration_error(probabilities, labels) == pytest.approx(100 * float(wanted))
    sure = torch.eye(4)[labels].double()
    assert robustness.expected_calibration_error(sure, labels) == 0


def test_the_temperature_undoes_a_false_confidence():
    torch.manual_seed(0)
    logits = 2 * torch.randn(4000, 5)
    labels = torch.multinomial(logits.softmax(1), 1)[:, 0]
    found = robustness.calibration(4 * logits[:2000], labels[:2000], 4 * logits[2000:], labels[2000:])
    assert found.temperature == pytest.approx(4, rel=0.1)
    assert found.ece < 4 < found.ece_before and found.interval[0] <= found.interval[1] and found.n_test == 2000


def test_every_corruption_has_five_constants():
    tables = (
        damage.NOISE,
        damage.SHOT,
        damage.IMPULSE,
        damage.SPECKLE,
        damage.BLUR,
        damage.BRIGHTNESS,
        damage.CONTRAST,
    )
    assert {len(t) for t in (*tables, damage.PIXELATE, damage.JPEG)} == {5}


def test_the_protocol_tells_each_damage_with_an_interval_and_its_ratio():
    overrides = {"images": 20, "epochs": 3, "corruptions": ["contrast"]}
    options = {"img_size": 32, "device": "cpu", "overrides": overrides}
    results = evaluate("test_resnet", ["robustness"], "photos", **options)
    found = {r["protocol"].partition("/")[2]: r for r in results}
    kinds = ["occlusion-random", "occlusion-most", "occlusion-least", "patch-shuffle", "contrast"]
    assert list(found) == ["calibration", *kinds]
    for kind in kinds:
        result = found[kind]
        assert result["interval"][0] <= result["top1_last"] <= result["interval"][1] and result["n_test"] == 20
        assert set(result["ratio"]) == set(result["accuracy"]) and "harsher" in result["note"]
        assert result["clean"] == found["contrast"]["clean"] > 10
    assert found["calibration"]["n_test"] == 1024 and found["calibration"]["temperature"] > 0

"""Pictures of features: colours, neighbours and spectra against what is known of them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from a2mim.analysis.representation import (
    Album,
    Sample,
    add_feature_maps,
    add_neighbours,
    add_spectrum,
    map_colours,
    radial_power,
)
from a2mim.encoder import MaskedEncoder
from a2mim.pixels import Preprocessing

PIXELS = Preprocessing((0.5,) * 3, (0.25,) * 3, (32, 32))


def test_places_of_equal_features_have_equal_colours_and_others_do_not():
    kinds = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    which = torch.tensor([[[0, 1], [2, 0]], [[1, 1], [0, 2]]])
    colours = map_colours(kinds[which].permute(0, 3, 1, 2))
    for kind in range(3):
        assert len(np.unique(colours[which.numpy() == kind], axis=0)) == 1
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 3


def test_one_component_is_grey_in_the_others_and_a_constant_map_is_grey():
    line = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    colours = map_colours(line)
    assert (colours[..., 1:] == 128).all() and colours[..., 0].min() == 0 and colours[..., 0].max() == 255
    assert (map_colours(torch.ones(2, 5, 3, 3)) == 128).all()


def test_a_wave_has_its_power_at_its_own_frequency():
    wave = torch.sin(2 * torch.pi * 4 / 32 * torch.arange(32)).expand(2, 3, 32, 32) + 5
    frequency, power = radial_power(wave)
    assert frequency[int(np.argmax(power))] == pytest.approx(4 / 32)
    assert sum(power) == pytest.approx(max(power))
    assert frequency[0] == pytest.approx(1 / 32) and frequency[-1] == 0.5


def test_the_blurred_answer_is_told_to_lack_high_frequencies(tmp_path):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    album = Album(tmp_path)
    add_spectrum(album, images, blurred)
    album.write()
    (figure,) = json.loads((tmp_path / "representation.json").read_text())["figures"]
    share = int(figure["message"].split("has ")[1].split("%")[0])
    assert share < 10 and [line["label"] for line in figure["lines"]] == ["image", "reconstruction"]


def test_the_nearest_neighbour_of_a_copy_is_the_original_at_distance_0(tmp_path):
    generator = torch.Generator().manual_seed(0)
    bank = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=generator)
    encoder = MaskedEncoder("resnet18", img_size=32)
    album = Album(tmp_path)
    queries = Sample(bank[[7, 3]], ["a", ""])
    names = [f"kind {i}" for i in range(12)]
    add_neighbours(album, {"before": encoder.model, "after": encoder.model}, queries, Sample(bank, names), PIXELS)
    rows = album.parts[0]["rows"]
    assert [len(row) for row in rows] == [7, 7]
    captions = [tile["caption"] for tile in rows[0]]
    assert captions[0] == "a" and captions[1].startswith("before 1: ") and captions[1].endswith("kind 7")
    assert float(captions[1].split()[2].rstrip(",")) < 1e-5
    with Image.open(tmp_path / rows[0][1]["file"]) as neighbour, Image.open(tmp_path / rows[0][0]["file"]) as query:
        assert np.array_equal(neighbour, query) and query.size == (128, 128)


@pytest.mark.parametrize("name", ["resnet18", "xcit_nano_12_p16_224"])
def test_feature_maps_stand_beside_their_image_before_and_after(tmp_path, name):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    album = Album(tmp_path)
    encoders = {when: MaskedEncoder(name, img_size=32) for when in ("before", "after")}
    add_feature_maps(album, encoders, Sample(images, ["", ""]), PIXELS)
    rows = album.parts[0]["rows"]
    assert [[tile["caption"] for tile in row] for row in rows] == 2 * [["image", "before", "after"]]
    assert len(list(tmp_path.glob("*.png"))) == 6


def test_grey_images_are_shown_grey(tmp_path):
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    pixels = Preprocessing((0.5,), (0.25,), (32, 32))
    encoder = MaskedEncoder("resnet18", img_size=32, in_chans=1)
    album = Album(tmp_path)
    add_feature_maps(album, {"after": encoder}, Sample(images, ["", ""]), pixels)
    with Image.open(tmp_path / album.parts[0]["rows"][1][0]["file"]) as picture:
        shown = np.asarray(picture.convert("RGB"))
    assert (shown[..., 0] == shown[..., 1]).all()
    assert np.abs(shown[::4, ::4, 0].astype(int) - images[1, 0].numpy()).max() <= 1

import numpy as np
import pytest
from PIL import Image
from small_images import picture
from torchvision.transforms import RandomResizedCrop

from a2mim.data import keyed
from a2mim.data.crops import DRAWS, INTERPOLATIONS, center_crop, random_box, random_crop, resize

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def difference(ours, theirs: Image.Image) -> int:
    return np.abs(ours.transpose(1, 2, 0).astype(int) - np.asarray(theirs).astype(int)).max()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    "height, width, size", [(60, 91, 32), (31, 20, 64), (200, 150, 17), (1, 9, 8), (220, 139, 187)]
)
def test_resizing_is_within_one_of_pillow(interpolation, height, width, size):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    edges = np.where(rng.random((height, width, 3)) < 0.5, 0, 255).astype(np.uint8)
    for pixels in (picture(0, height, width), noise, edges):
        ours = resize(pixels, (size, size), interpolation)
        assert difference(ours, Image.fromarray(pixels).resize((size, size), PILLOW[interpolation])) <= 1


def test_a_random_crop_is_within_one_of_pillows_crop_and_resize():
    pixels = picture(1, 90, 120)
    for u in keyed.uniforms(0, 0, np.arange(20), DRAWS):
        x, y, w, h = random_box(u, 120, 90, (0.2, 1.0), (3 / 4, 4 / 3))
        theirs = Image.fromarray(pixels).crop((x, y, x + w, y + h)).resize((32, 24), Image.Resampling.BILINEAR)
        theirs = theirs.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if u[-1] < 0.5 else theirs
        assert difference(random_crop(pixels, u, (24, 32), (0.2, 1.0), (3 / 4, 4 / 3), 0.5, "bilinear"), theirs) <= 1


@pytest.mark.parametrize(("height", "width"), [(90, 120), (121, 90), (64, 64), (100, 33)])
def test_a_center_crop_is_within_one_of_torchvisions_recipe_in_pillow(height, width):
    """torchvision.transforms Resize(40) and CenterCrop(32) as they compute sizes and corners."""
    short, pixels = min(height, width), picture(2, height, width)
    new = (40, int(40 * height / width)) if width == short else (int(40 * width / height), 40)
    theirs = Image.fromarray(pixels).resize(new, Image.Resampling.BICUBIC)
    left, top = round((new[0] - 32) / 2), round((new[1] - 32) / 2)
    assert difference(center_crop(pixels, (32, 32), 40, "bicubic"), theirs.crop((left, top, left + 32, top + 32))) <= 1


def test_a_panorama_is_not_resized_to_be_cut_off():
    pixels = np.zeros((2, 60_000, 3), np.uint8)
    pixels[:, 29_990:30_010] = 255
    crop = center_crop(pixels, (224, 224), 256, "bilinear")
    assert crop.shape == (3, 224, 224) and crop.min() == 255


def test_boxes_are_distributed_as_torchvisions():
    ours = np.array(
        [random_box(u, 200, 150, (0.3, 0.9), (0.5, 2.0)) for u in keyed.uniforms(0, 0, np.arange(2000), DRAWS)]
    )
    reference = RandomResizedCrop(8, (0.3, 0.9), (0.5, 2.0))
    image = Image.new("L", (200, 150))
    theirs = np.array([reference.get_params(image, reference.scale, reference.ratio) for _ in range(2000)])
    theirs = theirs[:, [1, 0, 3, 2]]  # top, left, height, width
    spread = theirs.std(0) / np.sqrt(2000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 6 * spread).all()
    assert np.allclose(ours.std(0), theirs.std(0), rtol=0.15)


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (1, 1), (3, 2)])
def test_when_no_try_fits_the_box_is_the_largest_centred_one(width, height):
    for u in keyed.uniforms(0, 0, np.arange(50), DRAWS):
        x, y, w, h = random_box(u, width, height, (0.9, 1.0), (3 / 4, 4 / 3))
        assert 0 <= x <= x + w <= width and 0 <= y <= y + h <= height and min(w, h) >= 1
        if width == 1000:
            assert (x, y, w, h) == (493, 0, 13, 10)


def test_no_flip_and_always_flip():
    pixels, u = picture(3), keyed.uniforms(0, 0, np.arange(1), DRAWS)[0]
    never, always = (random_crop(pixels, u, (16, 16), (0.5, 1), (1, 1), chance, "bilinear") for chance in (0.0, 1.0))
    assert (never[..., ::-1] == always).all() and (never != always).any()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("channels", [1, 2, 4, 5, 20])
def test_any_channel_count_is_resized_band_by_band_as_pillow_does_it(interpolation, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, channels), dtype=np.uint8)
    ours = resize(pixels, (24, 32), interpolation)
    for band in range(channels):
        theirs = Image.fromarray(pixels[:, :, band]).resize((32, 24), PILLOW[interpolation])
        assert np.abs(ours[band].astype(int) - np.asarray(theirs)).max() <= 1


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_sixteen_bits_are_resized_to_the_nearest_sixteen_bit_value(interpolation):
    """Against Pillow on floats, rounded: at most 1 of 65,535 away."""
    pixels = np.random.default_rng(0).integers(0, 65536, (50, 70, 3), dtype=np.uint16)
    ours = resize(pixels, (24, 32), interpolation)
    assert ours.dtype == np.uint16
    for band in range(3):
        image = Image.fromarray(pixels[:, :, band].astype(np.float32))
        theirs = np.asarray(image.resize((32, 24), PILLOW[interpolation])).round().clip(0, 65535)
        assert np.abs(ours[band].astype(int) - theirs).max() <= 1


def test_a_flip_of_sixteen_bits_is_a_flip():
    pixels, u = (picture(3).astype(np.uint16) * 257), keyed.uniforms(0, 0, np.arange(1), DRAWS)[0]
    never, always = (random_crop(pixels, u, (16, 16), (0.5, 1), (1, 1), chance, "bilinear") for chance in (0.0, 1.0))
    assert (never[..., ::-1] == always).all() and (never != always).any()

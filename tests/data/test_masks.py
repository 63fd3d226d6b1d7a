"""Index masks: the number counts and never the colour; what is no mask is refused by name."""

import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from a2mim.data.masks import looks_masked, open_masked, read_mask


def png(array, mode=None, palette=None):
    image = Image.fromarray(array, mode) if mode else Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


IDS = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def test_a_palette_is_read_by_its_index():
    colours = np.random.default_rng(0).integers(0, 256, 768).tolist()
    image = Image.fromarray(IDS)
    data = png(IDS, palette=colours)
    assert Image.open(io.BytesIO(data)).mode == "P" and image.mode == "L"
    assert (read_mask(data, "x") == IDS).all()
    assert (np.asarray(Image.open(io.BytesIO(data)).convert("L")) != IDS).any()  # what colours would have given


def test_8_and_16_bits_and_bilevel_are_read_whole():
    deep = IDS.astype(np.uint16) * 300
    assert (read_mask(png(IDS), "x") == IDS).all() and (read_mask(png(deep), "x") == deep).all()
    assert set(np.unique(read_mask(png(IDS > 50), "x"))) == {0, 1}


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_are_refused(channels):
    with pytest.raises(ValueError, match=r"mask m\.png has the channels .*one channel"):
        read_mask(png(np.zeros((4, 4, channels), np.uint8)), "m.png")


def test_what_is_no_image_is_refused_by_name():
    with pytest.raises(ValueError, match=r"mask m\.png cannot be read"):
        read_mask(b"nothing", "m.png")


def write(root, masks, size=(8, 8)):
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for name, mask in masks.items():
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(root / "images" / f"{name}.jpg")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


@pytest.mark.parametrize(("bits", "spread"), [(1, False), (2, True), (4, True), (8, False)])
def test_grey_masks_whose_values_a_decoder_spreads_are_refused(bits, spread):
    """A PNG written by hand: Pillow writes grey images of 1 and 8 bits alone, and reads 2 and 4 as shades up to 255."""
    ids = np.arange(16).reshape(2, 8) % 2
    packed = [np.packbits((row[:, None] >> np.arange(bits)[::-1]) & 1).tobytes() for row in ids.astype(np.uint8)]
    header = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in packed))
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    if spread:
        with pytest.raises(ValueError, match="2 or 4 bits"):
            read_mask(file, "m.png")
    else:
        assert (read_mask(file, "m.png") == ids).all()


def test_a_folder_pairs_equal_names_and_knows_its_splits(tmp_path):
    masks = {name: np.full((8, 8), i, np.uint8) for i, name in enumerate("ba")}
    write(tmp_path / "d" / "train", masks)
    write(tmp_path / "d" / "val", {"c": np.full((8, 8), 9, np.uint8)})
    (tmp_path / "d" / "classes.txt").write_text("sky\nsea\n")
    train, test = (open_masked(tmp_path / "d", split) for split in ("train", "test"))
    assert [train.read(i)[1][0, 0] for i in range(2)] == [1, 0] and train.class_names == ["sky", "sea"]
    assert test.read(0)[1][0, 0] == 9 and train.has_split and looks_masked(str(tmp_path / "d"))
    assert not looks_masked(str(tmp_path)) and looks_masked("textures") and not looks_masked("photos")


def test_an_image_without_a_mask_or_of_another_size_is_named(tmp_path):
    root = write(tmp_path / "d", {"a": np.zeros((8, 9), np.uint8)})
    with pytest.raises(ValueError, match=r"a\.jpg is 8 x 8 px and its mask 9 x 8"):
        open_masked(root).read(0)
    (root / "masks" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 1 images .* have no mask"):
        open_masked(root)


def test_shards_hold_images_and_masks(tmp_path):
    with tarfile.open(tmp_path / "s-0.tar", "w") as tar:
        for i in range(3):
            for suffix, array in (("png", np.full((4, 4, 3), i, np.uint8)), ("mask.png", np.full((4, 4), i, np.uint8))):
                info = tarfile.TarInfo(f"{i}.{suffix}")
                data = png(array)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    found = open_masked(str(tmp_path / "s-{0..0}.tar"))
    assert [(found.read(i)[0][0, 0, 0], found.read(i)[1][0, 0]) for i in range(3)] == [(0, 0), (1, 1), (2, 2)]
    assert looks_masked(str(tmp_path / "s-{0..0}.tar")) and looks_masked([str(tmp_path / "s-*.tar")])
    assert not looks_masked([1, 2]) and not looks_masked("https://nowhere.invalid/s-{0..1}.tar")
    (tmp_path / "broken.tar").write_bytes(b"junk")
    assert not looks_masked(tmp_path / "broken.tar") and not looks_masked(str(tmp_path / "missing.tar"))


def test_the_built_in_textures_have_exact_masks_from_disjoint_halves():
    train, test = open_masked("textures", "train"), open_masked("textures", "test")
    seen = set()
    for i in range(12):
        image, mask = train.read(i)
        assert image.shape == (128, 128, 3) and mask.shape == (128, 128) and mask.max() < 5
        seen |= set(np.unique(mask).tolist())
        assert (train.read(i)[0] == image).all()
    assert seen == set(range(5)) and (train.read(0)[0] != test.read(0)[0]).any() and len(test) == 80


@pytest.mark.parametrize(
    "data",
    [
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%ImageData: 8 8 8 1 0 1 1 "x"\nshowpage\n',
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + b"\x00\x00\xff\xff" * 2 + b"\x08\x00\x00\x00\x00" + bytes(40),
        b"II*\x00" + bytes(60),
        b"",
    ],
)
def test_a_mask_is_decoded_by_no_program_and_is_bounded(data, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(ValueError, match="the mask a"):
        read_mask(data, "a.png")


def test_a_shard_of_masks_whose_header_lies_is_an_error_of_the_shard(tmp_path):
    header = bytearray(512)
    header[:5], header[124:136], header[156:157], header[257:265] = b"0.jpg", b"-0000000001\0", b"0", b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(ValueError, match=r"a\.tar"):
        open_masked(str(tmp_path / "a.tar"))

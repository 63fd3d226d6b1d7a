"""Images with index masks: each pixel of a mask is the number of its class, never a colour.

A mask is a PNG of one channel: 8 bits, 16 bits, or a palette, whose indices are the classes. It has the size of its
image.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from a2mim.data import keyed
from a2mim.data.decode import decode
from a2mim.data.photos import half
from a2mim.data.pixel_format import UnreadableImage
from a2mim.data.plain_files import read_class_list, read_file
from a2mim.data.rasters import MAX_PIXELS
from a2mim.data.remote.addresses import is_remote
from a2mim.data.shards.tarfiles import TarError, files
from a2mim.data.sources import expand
from a2mim.data.walk import PICTURES

_SINGLE = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")  # Pillow's modes of one channel of whole numbers
_SPREAD = ("L;2", "L;4")  # Pillow's raw modes of fewer bits, whose values it spreads over 0 to 255
_FORMATS = ("PNG", "BMP", "GIF", "TIFF")  # of a mask; Pillow would hand others to programs such as Ghostscript
_SPLITS = {"train": ("train", "training"), "test": ("test", "val", "validation")}
_LOOKED_AT = 32  # files of a shard that tell whether its images have masks
_MASK_SUFFIXES = ("mask.png", "seg.png")  # of the mask of a sample in a shard
TEXTURES = ("brick.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png")
TEXTURE_IMAGES = {"train": 240, "test": 80}
_SIDE, _CELLS, _SEED = 128, 5, 2025_0602


@dataclass(frozen=True)
class Masked:
    """Images with the class of every pixel.

    Args:
        title: the source, as the user named it.
        names: of the images, for people.
        read: position -> ((H, W, 3) uint8, (H, W) int64 ids).
        class_names: of the ids from 0 on, or None.
        has_split: the source has a test set of its own.
    """

    title: str
    names: list[str]
    read: Callable[[int], tuple[np.ndarray, np.ndarray]]
    class_names: list[str] | None = None
    has_split: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def part(self, rows: Iterable[int]) -> Masked:
        """The images of some rows, in that order."""
        chosen = [int(row) for row in rows]
        names = [self.names[row] for row in chosen]
        return replace(self, names=names, read=lambda i: self.read(chosen[i]))


def open_masked(source, split: str = "train") -> Masked:
    """A folder with images/ and masks/ (also under train/ and test/), tar shards, or the built-in "textures".

    Args:
        source: in a shard, the mask of KEY.jpg is KEY.mask.png or KEY.seg.png.
        split: "train" or "test", for sources that have both.

    Raises:
        FileNotFoundError: nothing is there. ValueError: images without masks, or nothing that can be used.
    """
    if isinstance(source, list | tuple) and len(source) == 1:
        source = source[0]
    if source == "textures":
        return open_textures(split)
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        return _open_folder(Path(source), split)
    return _open_shards(source)


def looks_masked(source) -> bool:
    """True for a folder of images and masks, the built-in one, and local shards whose first samples have masks."""
    if isinstance(source, list | tuple) and len(source) == 1:
        source = source[0]
    if source == "textures":
        return True
    if isinstance(source, str | os.PathLike):
        root = Path(source)
        folders = (root, *_split_folders(root))
        if any((folder / "masks").is_dir() and (folder / "images").is_dir() for folder in folders):
            return True
    return _shard_has_masks(source)


def _shard_has_masks(source) -> bool:
    """Whether a mask is among the first files of the first shard; False for everything that is no local tar file."""
    parts = source if isinstance(source, list | tuple) else [source]
    if not all(isinstance(part, str | os.PathLike) and not is_remote(os.fspath(part)) for part in parts):
        return False
    try:
        first = next(iter(expand(source)), "")
        if is_remote(first) or not first.endswith(".tar"):
            return False
        names = (name.partition(".")[2].lower() for name, _, _ in itertools.islice(files(first), _LOOKED_AT))
        return any(suffix in _MASK_SUFFIXES for suffix in names)
    except (OSError, TarError, ValueError):  # the command that opens it says what is wrong
        return False


def read_mask(data: bytes, name: str) -> np.ndarray:
    """(H, W) int64 ids.

    Raises:
        ValueError: it has more than one channel (colours are not ids), or is no image.
    """
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            mode = image.mode
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"the mask {name} has {image.width} x {image.height} pixels, which is too large.")
            if mode not in _SINGLE:
                raise ValueError(
                    f"the mask {name} has the channels {mode}: a mask is a PNG with one channel, 8 or 16 bits or a"
                    " palette, that holds the number of the class; colours are not read as classes."
                )
            if {tile[3] for tile in image.tile} & set(_SPREAD):
                raise ValueError(
                    f"the mask {name} has grey values of 2 or 4 bits, which are read as shades from 0 to 255 and not as"
                    " classes: save it with 8 bits or with a palette."
                )
            return np.asarray(image).astype(np.int64)
    except ValueError:
        raise
    except Exception as error:  # a decoder raises anything on damage
        raise ValueError(f"the mask {name} cannot be read: {error}.") from None


def open_textures(split: str = "train") -> Masked:
    """Five textures of the scikit-image wheel in one image: each pixel belongs to the nearest of five points and shows
    that point's texture. Training images come from the left halves of the textures, test images from the right halves.

    The halves are balanced to one mean colour, see `photos.half`, so that colour alone does not tell the class.
    """
    if split not in TEXTURE_IMAGES:
        raise ValueError(f"split={split!r} of the built-in textures is unknown; choose train or test")
    halves = [half(name, split) for name in TEXTURES]
    names = [f"textures/{split}/{i}" for i in range(TEXTURE_IMAGES[split])]
    keys = np.array([keyed.key_of(name) for name in names], np.uint64)
    draws = keyed.uniforms(_SEED, 0, keys, 5 * _CELLS, keyed.PHOTOGRAPH).reshape(len(keys), _CELLS, 5)
    class_names = [Path(name).stem for name in TEXTURES]
    return Masked(f"textures ({split})", names, lambda i: _compose(draws[i], halves), class_names, True)


def _compose(draws: np.ndarray, halves: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One image of side 128 and its mask, from (points, 5) draws: position (y, x), class, and origin in the texture."""
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    points = draws[:, :2] * _SIDE
    distances = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    nearest = distances.argmin(axis=2)
    classes = (draws[:, 2] * len(halves)).astype(np.int64)
    image = np.empty((_SIDE, _SIDE, 3), np.uint8)
    for k, (label, y, x) in enumerate(zip(classes, draws[:, 3], draws[:, 4], strict=True)):
        texture = halves[label]
        top, left = (int(u * (side - _SIDE + 1)) for u, side in zip((y, x), texture.shape[:2], strict=True))
        where = nearest == k
        image[where] = texture[top : top + _SIDE, left : left + _SIDE][where]
    return image, classes[nearest]


def _split_folders(root: Path) -> list[Path]:
    return [root / name for names in _SPLITS.values() for name in names if (root / name).is_dir()]


def _open_folder(root: Path, split: str) -> Masked:
    parts = {name: [root / p for p in places if (root / p / "images").is_dir()] for name, places in _SPLITS.items()}
    has_split = all(parts.values())
    folder = parts[split][0] if has_split else root
    images, masks = (
        _by_stem(folder / kind, suffixes) for kind, suffixes in (("images", PICTURES), ("masks", ("png",)))
    )
    if not images:
        raise FileNotFoundError(f"{folder} holds no images/ folder with images: it needs images/ and masks/.")
    if missing := sorted(set(images) - set(masks)):
        raise ValueError(
            f"{len(missing)} of {len(images)} images in {folder / 'images'} have no mask of the same name in masks/,"
            f" first {missing[0]}.png"
        )
    stems = sorted(images)

    def read(i: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = images[stems[i]], masks[stems[i]]
        return _pair(read_file(image), read_file(mask), str(image), str(mask))

    listed = next((path for path in (folder / "classes.txt", root / "classes.txt") if path.is_file()), None)
    return Masked(
        str(folder), [str(images[stem]) for stem in stems], read, read_class_list(listed) if listed else None, has_split
    )


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files under a folder, by their relative path without the suffix."""
    if not folder.is_dir():
        return {}
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix.lower().lstrip(".") in suffixes)
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in paths if not path.name.startswith(".")
    }


def _open_shards(source) -> Masked:
    shards = expand(source)
    if remote := [shard for shard in shards if is_remote(shard)]:
        raise ValueError(f"{remote[0]} is remote: shards of images and masks are read from disk; copy them first.")
    pairs: list[tuple[str, str, tuple[int, int], tuple[int, int]]] = []  # shard, key, (offset, size) of image and mask
    for shard in shards:
        pairs += _pairs_of(shard)
    if not pairs:
        raise ValueError(f"no images with masks in {source}: the mask of KEY.jpg is KEY.mask.png beside it.")

    def read(i: int) -> tuple[np.ndarray, np.ndarray]:
        shard, key, *spans = pairs[i]
        with open(shard, "rb") as file:
            contents = []
            for offset, size in spans:
                file.seek(offset)
                contents.append(file.read(size))
        image, mask = contents
        return _pair(image, mask, f"{shard}:{key}", f"{shard}:{key}.mask.png")

    listed = Path(shards[0]).parent / "classes.txt"
    names = [f"{shard}:{key}" for shard, key, *_ in pairs]
    return Masked(str(source), names, read, read_class_list(listed) if listed.is_file() else None)


def _pairs_of(shard: str) -> list[tuple[str, str, tuple[int, int], tuple[int, int]]]:
    images: dict[str, tuple[int, int]] = {}
    masks: dict[str, tuple[int, int]] = {}
    try:
        for name, offset, size in files(shard):
            key, _, suffix = name.partition(".")
            if suffix.lower() in (*_MASK_SUFFIXES, *PICTURES):
                kind = masks if suffix.lower() in _MASK_SUFFIXES else images
                kind[key] = (offset, size)
    except TarError as error:
        raise ValueError(f"{shard} is no tar file that can be read: {error}.") from None
    if missing := sorted(set(images) - set(masks)):
        raise ValueError(f"{len(missing)} images in {shard} have no mask, first {missing[0]}: name it KEY.mask.png.")
    return [(shard, key, images[key], masks[key]) for key in images]


def _pair(image: bytes, mask: bytes, image_name: str, mask_name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        pixels = decode(image)
    except UnreadableImage as error:
        raise ValueError(f"{image_name} cannot be read: {error}.") from None
    ids = read_mask(mask, mask_name)
    if ids.shape != pixels.shape[:2]:
        raise ValueError(
            f"{image_name} is {pixels.shape[1]} x {pixels.shape[0]} px and its mask {ids.shape[1]} x {ids.shape[0]}:"
            " both must have one size."
        )
    return pixels, ids

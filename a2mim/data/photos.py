"""The built-in photographs, from the scikit-image wheel, so that every command runs without data.

Each photograph is cut in the middle: training crops come from the left half and test crops from the right half, so that
they share no pixel. The label of a crop is its photograph. Crops are cut when they are read. Their positions are keyed
by their number. The halves stay in memory.

Without a correction this would be a test of colour: the nearest neighbour by mean colour finds the right photograph for
66 % of the test crops. So each half is balanced: each channel is multiplied to reach the same mean (the gray-world
rule of cameras, Buchsbaum 1980, https://doi.org/10.1016/0016-0032(80)90058-7). Then mean colour reaches 42 %, and
features of networks with random weights reach 47 % (XCiT-nano) and 57 % (ResNet-18), by 20-NN at 64 px.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np

from a2mim.data import keyed
from a2mim.data.dataset import ImageDataset

# Left out: drawings and diagrams, the second view of the motorcycle, and images that are mostly blank.
PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)
SIZES = {"train": 4096, "test": 1024}
MEAN = 110  # target mean of each channel of each half, of 255
SIDES = (80, 144)  # least and greatest side of a crop, in pixels of the photograph
_SEED = 2205_13943  # of the positions; it never changes


class PhotoStore:
    """Crops of photographs, cut when read."""

    def __init__(self, halves: list[np.ndarray], names: list[str], boxes: np.ndarray):
        self.halves, self.names, self.boxes = halves, names, boxes

    def content(self, i: int) -> np.ndarray:
        photo, x, y, side = self.boxes[i]
        return self.halves[photo][y : y + side, x : x + side].copy()

    def name(self, i: int) -> str:
        photo, x, y, side = self.boxes[i]
        return f"{self.names[photo]}[{y}:{y + side}, {x}:{x + side}]"


def open_photos(split: str = "train") -> ImageDataset:
    """4,096 training crops of the left halves or 1,024 test crops of the right halves, equally many per photograph."""
    if split not in SIZES:
        raise ValueError(f"split={split!r} of the built-in photographs is unknown; choose train or test")
    names = [Path(photo).stem for photo in PHOTOGRAPHS]
    halves = [half(photo, split) for photo in PHOTOGRAPHS]
    keys = np.array([keyed.key_of(f"photos/{split}/{i}") for i in range(SIZES[split])], np.uint64)
    labels = np.arange(len(keys)) % len(halves)
    boxes = _cut(keys, labels, halves)
    return ImageDataset(
        PhotoStore(halves, names, boxes), f"photos ({split})", keys, labels, [len(keys)], names, tuple(SIZES)
    )


def half(photo: str, split: str) -> np.ndarray:
    """The left (train) or right (test) half of a photograph, balanced: (H, W // 2, 3) uint8."""
    pixels = _photograph(photo)
    middle = pixels.shape[1] // 2
    pixels = pixels[:, :middle] if split == "train" else pixels[:, middle:]
    levels = np.arange(256)
    balanced = [(levels * (MEAN / pixels[:, :, c].mean())).round().clip(0, 255).astype(np.uint8) for c in range(3)]
    return np.stack([balanced[c][pixels[:, :, c]] for c in range(3)], axis=2)


def _cut(keys: np.ndarray, labels: np.ndarray, halves: list[np.ndarray]) -> np.ndarray:
    """(photo, x, y, side) of every crop: (N, 4) int64."""
    u = keyed.uniforms(_SEED, 0, keys, 3, keyed.PHOTOGRAPH)
    sides = np.rint(SIDES[0] * (SIDES[1] / SIDES[0]) ** u[:, 0]).astype(np.int64)
    heights, widths = np.array([h.shape[:2] for h in halves])[labels].T
    x, y = u[:, 1] * (widths - sides + 1), u[:, 2] * (heights - sides + 1)
    return np.stack([labels, x.astype(np.int64), y.astype(np.int64), sides], axis=1)


@functools.cache
def _photograph(photo: str) -> np.ndarray:
    """(H, W, 3) uint8. The file is found without importing scikit-image, because that takes a second."""
    from PIL import Image

    spec = importlib.util.find_spec("skimage")
    path = Path(spec.origin).parent / "data" / photo if spec and spec.origin else None
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"the photograph {photo} of scikit-image is missing: pip install scikit-image, or give data"
        )
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))

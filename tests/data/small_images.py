"""Small images and archives, made anew for each test."""

import io
import tarfile

import numpy as np
from PIL import Image


def picture(number: int, height: int = 40, width: int = 56) -> np.ndarray:
    """(H, W, 3) uint8, smooth like a photograph, another for each number."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, suffix: str = "jpg", **options) -> bytes:
    buffer = io.BytesIO()
    kinds = {"jpg": "jpeg", "tif": "tiff"}
    Image.fromarray(pixels).save(
        buffer, kinds.get(suffix, suffix), **({"quality": 92} if suffix == "jpg" else {}), **options
    )
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    """The content of an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def write_tar(path, members: list[tuple[str, bytes]], format=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path

"""The last feature map of any backbone at any image size, beside its class token where it has one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from a2mim.batchnorm import calibrate_batchnorm
from a2mim.data.decode import decode
from a2mim.data.plain_files import read_file
from a2mim.evaluation.calibration import balanced_rows
from a2mim.evaluation.encoder import Encoder
from a2mim.evaluation.features import frozen
from a2mim.wiring.model_type import TimmModel

BATCH = 8  # large pictures that BatchNorm is calibrated on at once
SUFFIXES = (".jpg", ".jpeg", ".png")


class DenseEncoder:
    """images (B, C, H, W) uint8 of one size -> ((B, D, h, w) float32 features, (B, D) class tokens or None).

    The map is that of `a2mim.evaluation.cells.MapReader`.

    Args:
        source, device, allow_partial, seed: see `Encoder`.
        img_size: (H, W) in pixels; position embeddings are adapted by timm.

    Raises:
        ValueError: the network does not take images of this size.
    """

    def __init__(self, source, img_size: tuple[int, int], device=None, allow_partial=False, seed: int = 0):
        self.encoder = Encoder(source, device, img_size, allow_partial, seed)
        self.reader = self.encoder.reader("cells")
        self.stride = self.reader.stride

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        model: TimmModel = self.encoder.model
        with frozen(model), self.reader:
            output = model.forward_features(self.encoder.normalized(images))
            features = self.reader.read(output)
        token = getattr(model, "cls_token", None) is not None and isinstance(output, Tensor) and output.ndim == 3
        return features, output[:, 0].float() if token else None

    def calibrate(self, paths: list[Path], read: Callable[[Path], Tensor], groups: np.ndarray, at_most: int) -> int:
        """Takes BatchNorm's statistics from some of the pictures, unless the source brings those of whole images.

        Args:
            paths: all pictures.
            read: path -> (C, H, W) uint8, all of one size.
            groups: (N,) int, the video or folder of each picture: every group gives the same number of pictures.
            at_most: pictures.

        Returns:
            the number of pictures.
        """
        if self.encoder.clean_statistics:
            return 0
        rows = balanced_rows(groups, at_most)
        batches = (
            torch.stack([read(paths[i]) for i in some]) for some in np.split(rows, range(BATCH, len(rows), BATCH))
        )
        return calibrate_batchnorm(self.encoder.model, map(self.encoder.normalized, batches))


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8; ValueError with the file's name where it cannot be read."""
    try:
        return decode(read_file(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None


def resized(pixels: np.ndarray, size: tuple[int, int], interpolation: str = "bilinear") -> Tensor:
    """(H, W, 3) uint8 -> (3, *size) uint8, antialiased."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float()
    image = interpolate(image, size=size, mode=interpolation, antialias=True, align_corners=False)
    return image[0].round().clamp(0, 255).to(torch.uint8)


def pictures_in(folder: Path) -> list[Path]:
    """Image files directly in a folder, sorted by name; none where it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)

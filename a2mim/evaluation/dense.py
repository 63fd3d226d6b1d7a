"""The last feature map of any backbone at any image size, beside its class token where it has one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from a2mim.batchnorm import calibrate_batchnorm
from a2mim.data.decode import decode
from a2mim.evaluation.calibration import balanced_rows
from a2mim.evaluation.encoder import Encoder
from a2mim.evaluation.features import frozen
from a2mim.wiring.layout import leaves
from a2mim.wiring.model_type import TimmModel
from a2mim.wiring.sites import study

BATCH = 8  # large pictures that BatchNorm is calibrated on at once
SUFFIXES = (".jpg", ".jpeg", ".png")


class DenseEncoder:
    """images (B, C, H, W) uint8 of one size -> ((B, D, h, w) float32 features, (B, D) class tokens or None).

    The position of the map in the network's output is measured, not guessed (see `a2mim.wiring.sites`), so that any
    layout will do. Of several maps (CrossViT) the finest is taken.

    Args:
        source, device, allow_partial, seed: see `Encoder`.
        img_size: (H, W) in pixels; position embeddings are adapted by timm.

    Raises:
        ValueError: the network does not take images of this size.
    """

    def __init__(self, source, img_size: tuple[int, int], device=None, allow_partial=False, seed: int = 0):
        self.encoder = Encoder(source, device, img_size, allow_partial, seed)
        model = self.encoder.model
        noise = torch.randn(2, self.encoder.channels, *img_size, generator=torch.Generator().manual_seed(0))
        try:
            finals = study(model, noise.to(self.encoder.device), "auto", math.inf).finals
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{source} does not take images of {img_size[0]} x {img_size[1]} px: {reason}.") from None
        maps = [(max(s), f.module, path) for f in finals for s, path in zip(f.strides, f.layouts, strict=True)]
        self.stride, self.module, self.path = min(maps, key=lambda found: found[0])
        self.layout = next(f.layouts[self.path] for f in finals if f.module == self.module).to(self.encoder.device)
        self._tapped = None
        if self.module:
            model.get_submodule(self.module).register_forward_hook(self._tap)

    def _tap(self, module, inputs, output) -> None:
        self._tapped = output

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        model: TimmModel = self.encoder.model
        with frozen(model):
            output = model.forward_features(self.encoder.normalized(images))
            source = self._tapped if self.module else output
            features = self.layout.to_map(dict(leaves(source))[self.path]).float()
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
        return decode(path.read_bytes())
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

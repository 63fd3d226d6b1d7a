"""Reconstruction pictures: a row an image, with what was given, what was seen and what was answered."""

from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from a2mim.pixels import denormalize

COLUMNS = ("image", "masked", "reconstruction", "hidden part filled in")
_GAP, _HEADER, _SIDE = 4, 24, 160  # pixels: between panels, above them, and the side that small panels are enlarged to


def draw(shown: dict[str, Tensor], mean, std) -> np.ndarray:
    """MIM's mode "predict" -> (H, W, 3) uint8 RGB.

    Args:
        shown: "target", "masked", "recon": (B, C, h, w) normalised; "hidden": (B, 1, h, w) bool. More than three
            channels show their first three, one channel is shown grey.
        mean, std: of the normalisation.
    """
    grey = mid_grey(shown["target"], mean, std)
    panels = (
        shown["target"],
        torch.where(shown["hidden"], grey, shown["target"]),
        shown["recon"],
        torch.where(shown["hidden"], shown["recon"], shown["target"]),
    )
    stacked = torch.stack([denormalize(panel, mean, std) for panel in panels])[:, :, :3]
    if stacked.shape[2] < 3:
        stacked = stacked[:, :, :1].expand(-1, -1, 3, -1, -1)
    pixels = rearrange(stacked.cpu(), "column b c h w -> b column h w c").numpy()
    zoom = max(1, round(_SIDE / pixels.shape[2]))
    rows = [_join([_enlarge(panel, zoom) for panel in row], axis=1) for row in pixels]
    return np.concatenate([_header(rows[0].shape[1], len(COLUMNS)), _join(rows, axis=0)])


def mid_grey(like: Tensor, mean, std) -> Tensor:
    """Mid-grey in normalised units, in the shape of `like` (B, C, h, w): what stands for a hidden pixel in a
    picture.
    """
    mean, std = (torch.as_tensor(v, dtype=like.dtype, device=like.device).view(1, -1, 1, 1) for v in (mean, std))
    return ((0.5 - mean) / std).expand_as(like)


def save(picture: np.ndarray, path: Path) -> None:
    """Writes (H, W, 3) uint8 RGB as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mmcv.imwrite(mmcv.rgb2bgr(picture), str(path))


def _enlarge(panel: np.ndarray, zoom: int) -> np.ndarray:
    return panel.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _join(parts: list[np.ndarray], axis: int) -> np.ndarray:
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=axis)


def _header(width: int, columns: int) -> np.ndarray:
    strip = np.full((_HEADER, width, 3), 255, np.uint8)
    for i, title in enumerate(COLUMNS[:columns]):
        left = i * (width + _GAP) // columns + 2
        cv2.putText(strip, title, (left, _HEADER - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return strip

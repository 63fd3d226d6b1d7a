"""Reconstruction pictures: one row per image, with the image, its visible part and the prediction."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from a2mim.files import read_json, write_bytes, write_json
from a2mim.pixels import denormalize

COLUMNS = ("image", "masked", "reconstruction", "hidden part filled in")
FEATURES = ("image", "masked", "prediction", "target")
_GAP, _HEADER, _SIDE = 4, 44, 160  # pixels: between panels, above them, and the side that small panels are enlarged to
_DARKEST, _BRIGHTEST = 0.02, 0.98  # quantiles that become black and white in a stretched picture
_SAMPLE = 100_000  # values of a band that these quantiles are taken from


def layout(shown: dict[str, Tensor]) -> dict:
    """Positions of the panels in the sheet of `draw`: "columns" (their titles), "tile" (width,
    height of a panel), "gap" between panels and "header" above them, in pixels of the sheet.
    """
    height, width = shown.get("images", shown["target"]).shape[-2:]
    zoom, titles = _zoom(width), COLUMNS if _is_picture(shown) else FEATURES
    return {"columns": list(titles), "tile": [width * zoom, height * zoom], "gap": _GAP, "header": _HEADER}


def record_layout(folder: Path, step: int, sheet: dict) -> None:
    """Adds the layout of the sheet of `step` to layout.json: the newest layout, and under "steps" that of each step.

    A layout.json without "steps" is of an older version, whose sheets all have that one layout.
    """
    path = folder / "layout.json"
    try:
        known = read_json(path)
    except (OSError, ValueError):  # none yet, or damaged
        known = None
    known = known if isinstance(known, dict) else {}
    steps = known.pop("steps", None)
    if not isinstance(steps, dict):
        steps = {str(int(png.stem[5:])): known for png in folder.glob("step_*.png") if known and png.stem[5:].isdigit()}
    write_json(path, sheet | {"steps": steps | {str(step): sheet}})


def draw(
    shown: dict[str, Tensor],
    mean: Tensor | Sequence[float],
    std: Tensor | Sequence[float],
    bands: Sequence[int] | None = None,
    stretch: bool = False,
    caption: str = "",
) -> np.ndarray:
    """MIM's mode "predict" -> (H, W, 3) uint8 RGB.

    Args:
        shown: "target", "recon": (B, C, h, w) normalised; "hidden": (B, 1, h, w) bool. Where "images" (B, C, H, W)
            have another shape, the target is no picture: its three main directions are shown as colours.
        mean, std: of the normalisation, one value a channel.
        bands: the channels to show, from 0: one (grey) or three (red, green, blue). None: the first three, or the
            first where there are fewer.
        stretch: the 2nd percentile of each band of the images becomes black and the 98th white, in every panel. For
            data that use a small part of their range.
        caption: ASCII text above the titles.
    """
    images = shown.get("images", shown["target"])
    chosen = list(bands) if bands else list(range(3 if images.shape[1] >= 3 else 1))
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=images.device).flatten()[chosen] for v in (mean, std))
    names = ("images", "target", "recon") if _is_picture(shown) else ("images",)
    shown = shown | {name: shown[name][:, chosen] for name in names if name in shown}
    if stretch:
        mean, std = _stretched(shown.get("images", shown["target"]), mean, std)
    if not _is_picture(shown):
        titles, stacked = FEATURES, torch.stack(_feature_panels(shown, mean, std))
    else:
        titles = COLUMNS
        stacked = torch.stack([denormalize(panel, mean, std) for panel in _pixel_panels(shown, mean, std)])
    if stacked.shape[2] < 3:
        stacked = stacked.expand(-1, -1, 3, -1, -1)
    pixels = rearrange(stacked.cpu(), "column b c h w -> b column h w c").numpy()
    zoom = _zoom(pixels.shape[3])
    rows = [_join([_enlarge(panel, zoom) for panel in row], axis=1) for row in pixels]
    return np.concatenate([_header(rows[0].shape[1], titles, caption), _join(rows, axis=0)])


def _is_picture(shown: dict[str, Tensor]) -> bool:
    """Whether the target is an image, rather than features of one."""
    return shown["target"].shape == shown.get("images", shown["target"]).shape


def _pixel_panels(shown: dict[str, Tensor], mean, std) -> tuple[Tensor, ...]:
    """Image, masked image, answer, and the answer in the hidden part alone; each (B, C, H, W) normalised."""
    grey = mid_grey(shown["target"], mean, std)
    return (
        shown["target"],
        torch.where(shown["hidden"], grey, shown["target"]),
        shown["recon"],
        torch.where(shown["hidden"], shown["recon"], shown["target"]),
    )


def _feature_panels(shown: dict[str, Tensor], mean, std) -> list[Tensor]:
    """Image, masked image, and the three directions in which the target differs most, of the answer and of the target;
    each (B, 3, H, W) uint8.
    """
    images, size = shown["images"], tuple(shown["images"].shape[-2:])
    hidden = F.interpolate(shown["hidden"].float(), size, mode="nearest-exact") > 0
    pixels = [denormalize(x, mean, std) for x in (images, torch.where(hidden, mid_grey(images, mean, std), images))]
    pixels = [x.expand(-1, 3, -1, -1) for x in pixels]
    cells = shown["target"].float().movedim(1, -1).flatten(0, 2)
    centre = cells.mean(0)
    directions = torch.linalg.svd(cells - centre, full_matrices=False)[2][:3]  # (3, C), in order of variance
    deviation = ((cells - centre) @ directions.T).std(0).clamp_min(1e-6)
    panels = []
    for features in (shown["recon"], shown["target"]):
        coordinates = ((features.float().movedim(1, -1) - centre) @ directions.T) / deviation
        colours = ((coordinates.movedim(-1, 1) / 4 + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)
        colours = F.pad(colours, (0, 0, 0, 0, 0, 3 - colours.shape[1]))
        panels.append(F.interpolate(colours, size, mode="nearest-exact"))
    return [*pixels, *panels]


def _stretched(images: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """(C,) mean and (C,) deviation with which `denormalize` spreads each band from black to white.

    Args:
        images: (B, C, H, W) normalised.
        mean, std: (C,), of the normalisation.
    """
    values = images.float().movedim(1, 0).flatten(1)
    values = values[:, :: -(-values.shape[1] // _SAMPLE)] * std[:, None] + mean[:, None]
    low, high = (values.quantile(share, dim=1) for share in (_DARKEST, _BRIGHTEST))
    width = torch.where(high > low, high - low, torch.ones_like(low))  # a constant band is black
    return (mean - low) / width, std / width


def mid_grey(like: Tensor, mean, std) -> Tensor:
    """Mid-grey in normalised units, in the shape of `like` (B, C, h, w): what stands for a hidden pixel in a
    picture.
    """
    mean, std = (torch.as_tensor(v, dtype=like.dtype, device=like.device).view(1, -1, 1, 1) for v in (mean, std))
    return ((0.5 - mean) / std).expand_as(like)


def save(picture: np.ndarray, path: Path) -> None:
    """Writes (H, W, 3) uint8 RGB as PNG; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(".png", mmcv.rgb2bgr(picture))[1]
    write_bytes(path, encoded.tobytes())


def _zoom(width: int) -> int:
    """How often a pixel is repeated along each axis."""
    return max(1, round(_SIDE / width))


def _enlarge(panel: np.ndarray, zoom: int) -> np.ndarray:
    return panel.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _join(parts: list[np.ndarray], axis: int) -> np.ndarray:
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=axis)


def _header(width: int, titles: tuple[str, ...], caption: str) -> np.ndarray:
    """(_HEADER, width, 3) uint8: the caption, and below it a title above each column."""
    strip = np.full((_HEADER, width, 3), 255, np.uint8)
    cv2.putText(strip, caption, (2, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    for i, title in enumerate(titles):
        left = i * (width + _GAP) // len(titles) + 2
        cv2.putText(strip, title, (left, _HEADER - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return strip

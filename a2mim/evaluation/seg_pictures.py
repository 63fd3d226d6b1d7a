"""Pictures of segmentation: a test image, its mask and the prediction side by side, above a legend of the colours."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from a2mim.files import write_bytes
from a2mim.text import one_line

PICTURES = 8  # test images that are drawn
SEED = 0  # draws them, so that every encoder and every protocol shows the same images of a test set
FOLDER = "segmentation"  # of the pictures, inside the folder of the results
TITLES = ("image", "mask", "prediction")
SIDE, GAP, HEADER = 184, 12, 22  # pixels: the longer side of a panel, between panels, above them
IGNORED = (128, 128, 128)  # colour of pixels that do not count
_INK, _PAPER = (28, 33, 38), (255, 255, 255)
_LINE, _SWATCH, _LETTERS = 20, 12, 12  # pixels: a line of the legend, its coloured square, the height of its letters
_LINES = 6  # of the legend at most
_GOLDEN = (5**0.5 - 1) / 2  # of a turn between the hues of two classes that follow each other


def drawn_rows(n: int) -> list[int]:
    """Which of n test images are drawn: all of a few, else PICTURES of them, drawn by SEED; in order."""
    return sorted(np.random.default_rng(SEED).permutation(n)[:PICTURES].tolist())


def colours(n_classes: int) -> np.ndarray:
    """(C, 3) uint8 RGB, bright and never grey; neighbouring classes lie far apart."""
    hsv = [(k * _GOLDEN % 1, (0.9, 0.55)[k // 2 % 2], (0.95, 0.65)[k % 2]) for k in range(n_classes)]
    return np.round(255 * np.array([colorsys.hsv_to_rgb(*one) for one in hsv])).astype(np.uint8)


def class_labels(n_classes: int, names: Sequence[str] | None) -> list[str]:
    """The number of each class, with its name where it has one; printable, on one line."""
    given = names or [""] * n_classes
    return [f"{k} {one_line(name)}".strip() if name else f"class {k}" for k, name in enumerate(given)]


def legend(shown: Iterable[int], labels: Sequence[str], ignore: int) -> list[dict[str, str]]:
    """The label and the colour, "#rrggbb", of each class that is shown; ignored pixels last."""
    table, wanted = colours(len(labels)).tolist(), set(shown)
    known = [(labels[k], table[k]) for k in range(len(labels)) if k in wanted and k != ignore]
    known += [("ignored", list(IGNORED))] if ignore in wanted else []
    return [{"label": label, "colour": "#{:02x}{:02x}{:02x}".format(*rgb)} for label, rgb in known]


def draw(image: np.ndarray, truth: np.ndarray, guess: np.ndarray, labels: Sequence[str], ignore: int) -> Image.Image:
    """One test image: three panels under their titles, and the legend of the classes that they show.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth, guess: (H, W) classes. Pixels whose truth is `ignore` are grey in both, since they are not judged.
        labels: of the classes, see `class_labels`.
    """
    height, width = size = _fitted(image.shape[:2])
    panels = [np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))]
    panels += [paint(_nearest(ids, size), len(labels), ignore) for ids in (truth, judged(truth, guess, ignore))]
    entries = legend(seen(truth, guess, ignore), labels, ignore)
    font = ImageFont.load_default(_LETTERS)
    total = len(TITLES) * (SIDE + GAP) - GAP
    placed = _placed(entries, font, total)
    lines = 1 + max((line for _, _, line in placed), default=-1)
    sheet = Image.new("RGB", (total, HEADER + height + GAP + lines * _LINE), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (title, panel) in enumerate(zip(TITLES, panels, strict=True)):
        left = column * (SIDE + GAP)
        pen.text((left, HEADER // 2), title, _INK, font, anchor="lm")
        sheet.paste(Image.fromarray(panel), (left, HEADER))
    for entry, left, line in placed:
        top = HEADER + height + GAP + line * _LINE
        if entry["colour"]:
            pen.rectangle((left, top, left + _SWATCH - 1, top + _SWATCH - 1), entry["colour"])
        pen.text((left + _SWATCH + 4, top + _SWATCH // 2), entry["label"], _INK, font, anchor="lm")
    return sheet


def paint(ids: np.ndarray, n_classes: int, ignore: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB from (H, W) classes."""
    painted = colours(n_classes)[np.where(ids == ignore, 0, ids)]
    painted[ids == ignore] = IGNORED
    return painted


def judged(truth: np.ndarray, guess: np.ndarray, ignore: int) -> np.ndarray:
    """(H, W): the prediction, and `ignore` where the mask says so."""
    return np.where(truth == ignore, ignore, guess)


def seen(truth: np.ndarray, guess: np.ndarray, ignore: int) -> set[int]:
    """The ids that the two panels of classes show."""
    size = _fitted(truth.shape)
    return {int(k) for ids in (truth, judged(truth, guess, ignore)) for k in np.unique(_nearest(ids, size))}


def save(picture: Image.Image, path: Path) -> None:
    """Writes a PNG; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _fitted(shape: Sequence[int]) -> tuple[int, int]:
    """(height, width) of a panel: the image's proportions, its longer side SIDE pixels."""
    height, width = (max(1, round(side * SIDE / max(shape))) for side in shape)
    return height, width


def _nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) -> the class of the nearest pixel at each place of a panel."""
    rows, columns = ((np.arange(new) * 2 + 1) * old // (2 * new) for old, new in zip(ids.shape, size, strict=True))
    return ids[rows[:, None], columns[None, :]]


def _placed(entries: list[dict[str, str]], font, width: int) -> list[tuple[dict[str, str], int, int]]:
    """(entry, left in pixels, line) of the legend; what finds no room in _LINES lines becomes "and N more"."""
    placed: list[tuple[dict[str, str], int, int]] = []
    left, line = 0, 0
    for entry in entries:
        label = _cut(entry["label"], font, width // 3)
        needed = _SWATCH + 4 + round(font.getlength(label)) + GAP
        if left and left + needed > width:
            left, line = 0, line + 1
        placed.append((entry | {"label": label}, left, line))
        left += needed
    kept = [one for one in placed if one[2] < _LINES]
    if len(kept) < len(placed):
        kept = [one for one in placed if one[2] < _LINES - 1]
        kept.append(({"label": f"and {len(placed) - len(kept)} more", "colour": ""}, 0, _LINES - 1))
    return kept


def _cut(label: str, font, width: int) -> str:
    """The label, shortened to so many pixels."""
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(f"{label}…") > width:
        label = label[:-1]
    return f"{label}…"

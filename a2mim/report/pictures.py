"""Pictures for the page: small WebP files as data addresses, cut into single tiles where the layout is known."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from a2mim.report.records import Picture

_MOST_SIDE = 4096  # pixels; a larger picture was not drawn by a run
MOST_SHEETS = 6  # of reconstructions on a page: the first, the last, and some between
MOST_BESIDE = 3  # the same where several runs stand side by side
QUALITY = 85


@dataclass(frozen=True)
class Tile:
    """One inlined picture.

    Args:
        source: a data address.
        width, height: pixels.
        text: what it shows, for those who do not see it.
        caption: under the picture.
    """

    source: str
    width: int
    height: int
    text: str
    caption: str = ""


def inline(image: Image.Image, text: str, caption: str = "") -> Tile:
    """A picture as WebP in a data address."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=4)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Tile(f"data:image/webp;base64,{data}", image.width, image.height, text, caption)


def open_picture(path: Path) -> Image.Image | None:
    """A PNG or WebP of reasonable size; None where there is none that can be read."""
    try:
        if not path.is_file():
            return None
        with Image.open(path, formats=("PNG", "WEBP")) as image:
            if max(image.size) > _MOST_SIDE:
                return None
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def reconstruction_rows(pictures: Sequence[Picture], most: int = MOST_SHEETS) -> list[list[Tile]]:
    """A row for each image: the image, what was visible, and the hidden part filled in after some of the steps.

    Empty where the sheets cannot be cut into tiles; see `whole_sheets`. most: of the steps.
    """
    chosen = spread(pictures, most)
    sheets = [(picture, sheet) for picture in chosen if (sheet := open_picture(picture.path)) is not None]
    if not sheets or any(picture.layout is None for picture, _ in sheets):
        return []
    try:
        cut = [(picture.step, _cut(sheet, picture.layout or {})) for picture, sheet in sheets]
    except (KeyError, TypeError, ValueError):
        return []
    titles = [str(title) for title in chosen[-1].layout["columns"]]
    answer = titles.index("prediction") if "prediction" in titles else -1  # features have no hidden part to fill in
    rows, fewest = [], min(len(sheet) for _, sheet in cut)  # a resumed run may draw another number of images
    for i, (image, masked, *_, right) in enumerate(cut[-1][1][:fewest]):
        name = f"image {i + 1}"
        tiles = [inline(image, name, "image"), inline(masked, f"visible part of {name}", "visible")]
        if answer != -1:
            tiles.append(inline(right, f"{name}: the features to predict, as colours", "target"))
        for step, cells in cut:
            told = "hidden part reconstructed" if answer == -1 else "features predicted"
            tiles.append(inline(cells[i][answer], f"{name}, {told} after {step:,} steps", f"step {step:,}"))
        rows.append(tiles)
    return rows


def whole_sheets(pictures: Sequence[Picture]) -> list[Tile]:
    """The first and the last sheet as they are."""
    found = []
    for picture in spread(pictures, 2):
        sheet = open_picture(picture.path)
        if sheet is not None:
            when = f"after {picture.step:,} steps"
            columns = "image, visible part, reconstruction, hidden part filled in"
            found.append(inline(sheet, f"reconstructions {when}: {columns}", when))
    return found


def spread(items: Sequence, most: int) -> list:
    """At most so many, the first and the last among them, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _cut(sheet: Image.Image, layout: dict) -> list[list[Image.Image]]:
    """Rows of tiles. layout: "columns" (titles), "tile" (width, height), "gap" and "header" in pixels.

    Versions draw headers of different heights, and an older one recorded only the last. Where the recorded header does
    not leave whole rows, the height of the sheet says what it was.

    Raises:
        ValueError: the sheet does not have these columns.
    """
    columns, (width, height) = len(layout["columns"]), layout["tile"]
    gap, header = int(layout["gap"]), int(layout["header"])
    if columns < 3 or min(width, height) < 1 or min(gap, header) < 0:
        raise ValueError("no such layout")
    if sheet.width != columns * (width + gap) - gap:
        raise ValueError("the sheet has other columns than its layout")
    if (sheet.height - header + gap) % (height + gap):
        header = (sheet.height + gap) % (height + gap)
    rows = (sheet.height - header + gap) // (height + gap)
    return [
        [
            sheet.crop((left, top, left + width, top + height))
            for left in (column * (width + gap) for column in range(columns))
        ]
        for top in (header + row * (height + gap) for row in range(rows))
    ]

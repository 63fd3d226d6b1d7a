"""The part of the page on segmentation: pictures of predicted masks, the number of each protocol, and the colours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from a2mim.report.pictures import Tile, inline, open_picture
from a2mim.report.records import RunRecord
from a2mim.report.summary import is_number, is_pair

FOLDER = "segmentation"  # of the pictures, inside the run's
MOST_PICTURES, PICTURES_BESIDE = 8, 3  # of a protocol: of one run, and where several runs stand side by side
MOST_BYTES = 2 << 20  # of these pictures on a page, so that the whole page stays within its own bound
_MOST_RESULTS = 4  # the newest
_MOST_COLOURS = 64
_COLOUR = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True)
class Segmented:
    """What the page shows of one protocol.

    Args:
        says: its name and its number with the interval.
        tiles: test images, each beside its mask and the prediction.
        legend: (what it is, "#rrggbb") of each colour.
    """

    says: str
    tiles: list[Tile]
    legend: list[tuple[str, str]]


def segmented(run: RunRecord, runs: int = 1) -> list[Segmented]:
    """The newest results of segmentation whose pictures can be read, as many as the page has room for.

    Args:
        runs: how many stand on the page; they share its room.
    """
    found: list[Segmented] = []
    most, room = PICTURES_BESIDE if runs > 1 else MOST_PICTURES, MOST_BYTES // runs
    for result in reversed(run.segmented[-_MOST_RESULTS:]):
        tiles = []
        for entry in result["pictures"][:most]:
            tile = _tile(run.folder, result, entry)
            if tile is not None and len(tile.source) <= room:
                tiles.append(tile)
                room -= len(tile.source)
        if tiles:
            found.insert(0, Segmented(_sentence(result), tiles, _legend(result.get("legend"))))
    return found


def _tile(folder: Path, result: dict[str, Any], entry: Any) -> Tile | None:
    """A picture of the run's own folder; a file elsewhere is none."""
    entry = entry if isinstance(entry, dict) else {}
    name = PurePosixPath(str(entry.get("file", ""))).name
    if not name or entry.get("file") != f"{FOLDER}/{name}":
        return None
    image = open_picture(folder / FOLDER / name)
    if image is None:
        return None
    title, miou = str(entry.get("name", "")), entry.get("miou")
    measured = f", mIoU {miou:.1f} %" if is_number(miou) else ""
    text = f"{title}: the image, its mask, and what {result.get('protocol')} predicts{measured}"
    return inline(image, text, f"{PurePosixPath(title).name}{measured}")


def _sentence(result: dict[str, Any]) -> str:
    protocol, miou, interval = (result.get(key) for key in ("protocol", "top1_last", "interval"))
    if not is_number(miou):
        return str(protocol)
    told = f"{protocol}: mIoU {miou:.1f} %"
    if isinstance(interval, list) and is_pair(interval):
        told += f" (95 % interval {interval[0]:.1f} to {interval[1]:.1f})"
    if is_number(oracle := result.get("oracle")):
        told += f"; the right class for every cell gives {oracle:.1f} %"
    return f"{told}."


def _legend(entries: Any) -> list[tuple[str, str]]:
    """(label, colour) of the entries that are such; a colour is written into a style, so nothing else may pass."""
    entries = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    pairs = [(str(one.get("label", "")), str(one.get("colour", ""))) for one in entries[:_MOST_COLOURS]]
    return [(label, colour) for label, colour in pairs if _COLOUR.fullmatch(colour)]

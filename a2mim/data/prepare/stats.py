"""Exact mean and standard deviation of each channel over all pixels of a data set, in one pass and constant memory.

The sums of values and of squares are integers. So the result does not depend on the order, on the number of workers, or
on rounding.
"""

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from math import isnan, sqrt

import numpy as np
from torch.utils.data import DataLoader, Dataset

from a2mim.data.dataset import ImageDataset
from a2mim.data.decode import UnreadableImage
from a2mim.data.faults import UnreadableData
from a2mim.data.workers import as_it_is
from a2mim.text import ProgressBar

CHUNK = 64  # images per request to a worker
_BLOCK = 1 << 20  # pixels; a float64, with 53 bits, adds the 32-bit squares of so many without rounding


@dataclass
class Stats:
    """The result of measure_stats. Values are in the units of the batches: 0..255 or 0..65,535."""

    bits: int
    images: int = 0
    pixels: int = 0
    sums: list[int] = field(default_factory=list)  # of each channel
    squares: list[int] = field(default_factory=list)
    least: list[int] = field(default_factory=list)
    greatest: list[int] = field(default_factory=list)
    faults: Counter = field(default_factory=Counter)  # unreadable images by reason

    @property
    def mean(self) -> list[float]:
        """Mean of each channel, in units of 0..1."""
        return [float(Fraction(total, self.pixels * self._unit)) for total in self.sums]

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel in units of 0..1, over all pixels (not an estimate from a sample)."""
        n = self.pixels
        variances = [Fraction(n * q - s * s, n * n) for s, q in zip(self.sums, self.squares, strict=True)]
        return [sqrt(variance) / self._unit for variance in variances]

    @property
    def _unit(self) -> int:
        return 2**self.bits - 1

    def add(self, other: "Stats") -> None:
        for name, join in (("sums", _plus), ("squares", _plus), ("least", min), ("greatest", max)):
            ours, theirs = getattr(self, name), getattr(other, name)
            both = [join(a, b) for a, b in zip(ours, theirs, strict=True)] if ours and theirs else ours or theirs
            setattr(self, name, both)
        self.images, self.pixels = self.images + other.images, self.pixels + other.pixels
        self.faults += other.faults

    def lines(
        self, value_range=None, exif: bool = False, nodata: float | None = None, fill: float | None = None
    ) -> list[str]:
        """Lines for a recipe. Pixels without data are counted with the value that fills them."""
        extra = [f"    value_range={tuple(value_range)},"] if value_range else []
        extra += ["    exif=True,"] if exif else []
        if nodata is not None:
            extra.append('    nodata="nan",' if isnan(nodata) else f"    nodata={nodata!r},")
        extra += [f"    fill={fill!r},"] if fill is not None else []
        unread = f"; not read: {', '.join(f'{n} {reason}' for reason, n in self.faults.items())}" if self.faults else ""
        return [
            f"# {self.images:,} images, {self.pixels:,} pixels, {self.bits} bits{unread}",
            f"# least and greatest value: {self.least}, {self.greatest} of 0..{self._unit}",
            "data = dict(",
            f"    in_chans={len(self.sums)},",
            *extra,
            f"    mean={_rounded(self.mean)},",
            f"    std={_rounded(self.std)},",
            ")",
        ]


def measure_stats(dataset: ImageDataset, num_workers: int = 0) -> Stats:
    """Reads every image. Unreadable images are left out and counted.

    Raises:
        UnreadableData: no image can be read.
    """
    total = Stats(dataset.pixel_format.bits)
    chunks: DataLoader[Stats] = DataLoader(
        _Chunks(dataset), batch_size=None, num_workers=num_workers, collate_fn=as_it_is
    )
    with ProgressBar(total=len(dataset), desc="measuring", unit="img", leave=False) as bar:
        for chunk in chunks:
            total.add(chunk)
            bar.update(min(CHUNK, bar.total - bar.n))
    if not total.images:
        hint = "; NaN stands for no data? --nodata nan --fill VALUE replaces it" if total.faults["not finite"] else ""
        raise UnreadableData(f"none of {len(dataset)} images can be read: {dict(total.faults)}{hint}")
    return total


class _Chunks(Dataset[Stats]):
    """A map-style data set; an item is the statistics of `CHUNK` images."""

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return -(-len(self.dataset) // CHUNK)

    def __getitem__(self, chunk: int) -> Stats:
        ids = np.arange(chunk * CHUNK, min(len(self.dataset), (chunk + 1) * CHUNK))
        self.dataset.will_need(ids)
        stats = Stats(self.dataset.pixel_format.bits)
        for i in ids.tolist():
            try:
                stats.add(of_image(self.dataset.read(i)))
            except UnreadableImage as error:
                stats.faults[error.reason] += 1
        return stats


def of_image(pixels: np.ndarray) -> Stats:
    """Statistics of one image, (H, W, C) uint8 or uint16."""
    values = pixels.reshape(-1, pixels.shape[2])
    sums, squares = np.zeros(values.shape[1], object), np.zeros(values.shape[1], object)
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64)
        sums += block.sum(0).astype(np.int64)
        squares += np.einsum("nc,nc->c", block, block).astype(np.int64)
    extremes = values.min(0).tolist(), values.max(0).tolist()
    return Stats(8 * pixels.itemsize, 1, len(values), [int(s) for s in sums], [int(q) for q in squares], *extremes)


def _rounded(values: list[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def _plus(a: int, b: int) -> int:
    return a + b

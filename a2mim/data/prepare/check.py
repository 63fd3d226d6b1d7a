"""Reads all shards once, before a training run: counts images and names everything that is wrong."""

import warnings
from collections import Counter
from dataclasses import dataclass, field

from a2mim.data.access import DEFAULT, Access
from a2mim.data.dataset import ImageDataset
from a2mim.data.decode import LENIENT, UnreadableImage
from a2mim.data.errors import ShardError
from a2mim.data.parallel import each
from a2mim.data.pixel_format import PixelFormat
from a2mim.data.shards.indexing import look_at
from a2mim.data.shards.tar_shards import open_shards, refuse_missing
from a2mim.data.sources import expand
from a2mim.text import ProgressBar

_BYTES_A_PROCESS = 32 << 20  # a smaller amount is checked before a second process has started
_NAMED = 20  # unreadable images that are named, per shard


@dataclass
class ShardReport:
    """The result of check_shards. `str` of it is one line; `lines` names everything that is wrong."""

    shards: int = 0
    images: int = 0
    labelled: int = 0
    duplicates: int = 0  # images left out because an earlier image of the shard has the same key
    incomplete: int = 0  # keys with other members but no image
    lost: int = 0  # images and labels that are broken links or sparse files
    odd_labels: int = 0  # samples whose label is no class
    lenient: int = 0  # damaged images that could be decoded all the same
    faults: Counter = field(default_factory=Counter)  # unreadable images by reason
    unreadable: list[str] = field(default_factory=list)  # unreadable images: name (reason), the first 20 of each shard
    damaged: list[str] = field(default_factory=list)  # each unusable shard: path, byte and what is wrong
    labels: str = ""  # why the labels disagree

    @property
    def ok(self) -> bool:
        return not (self.faults or self.damaged or self.labels or self.lost)

    def __str__(self) -> str:
        line = f"{self.images:,} images in {self.shards} shards, {self.labelled:,} labelled"
        line += f", {self.duplicates} with a key that was taken left out" if self.duplicates else ""
        line += f", {self.incomplete} samples without an image left out" if self.incomplete else ""
        line += f", {self.odd_labels} labels that are no class" if self.odd_labels else ""
        line += f", {self.lenient} {LENIENT}" if self.lenient else ""
        if self.ok:
            return f"{line}: all readable"
        faults = [f"{len(self.damaged)} damaged shards"] if self.damaged else []
        faults += [f"{count} {reason}" for reason, count in self.faults.most_common()]
        faults += [f"{self.lost} images or labels lost"] if self.lost else []
        faults += ["labels that do not fit together"] if self.labels else []
        return f"{line}: {', '.join(faults)}; first: {self.lines()[0]}"

    def lines(self) -> list[str]:
        """One line for each fault."""
        lost = f"{self.lost} members are links to nothing in their archive, or sparse files; pack with `tar -h`"
        return [
            *self.damaged,
            *self.unreadable,
            *([lost] if self.lost else []),
            *([self.labels] if self.labels else []),
        ]


def check_shards(
    pattern, access: Access | None = None, in_chans: int = 3, value_range=None, nodata=None, fill=None
) -> ShardReport:
    """Indexes and decodes every image of the shards in several processes. `pattern` is as for open_dataset.

    Remote shards are fetched into the cache. in_chans, value_range, nodata, fill: see data/pixel_format.py; images that
    do not fit them are counted as unreadable.

    Raises:
        FileNotFoundError: names the missing shards.
    """
    pixel_format = PixelFormat(in_chans, 16, False, value_range and tuple(value_range), nodata, fill)
    access = access or DEFAULT
    addresses = expand(pattern, access)
    shards = look_at(addresses, access)
    refuse_missing(shards)
    report = ShardReport(shards=len(addresses))
    parts = {}
    items = [(address, access, pixel_format) for address in addresses]
    processes = min(access.workers, sum(shard.size or 0 for shard in shards) // _BYTES_A_PROCESS)
    for (address, *_), outcome in ProgressBar(
        each(_check, items, processes), "checking", len(items), unit="shard", leave=False
    ):
        if isinstance(outcome, ShardError):
            report.damaged.append(str(outcome))
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            parts[address] = outcome
    report.damaged.sort()
    for address in filter(parts.get, addresses):
        _add(report, parts[address])
    good = [address for address in addresses if address in parts and parts[address].images]
    if good:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report contains these warnings
            dataset = open_shards(good, "labels", access)
        report.labelled, report.labels = int((dataset.labels >= 0).sum()), dataset.label_fault
    return report


def _check(item: tuple[str, Access, PixelFormat]) -> ShardReport:
    """Checks one shard; raises ShardError."""
    address, access, pixel_format = item
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = open_shards([address], address, access)
    except ValueError as error:  # the shard is empty
        raise ShardError(str(error)) from None
    dataset.pixel_format = pixel_format
    counts = {name: getattr(dataset, name) for name in ("duplicates", "incomplete", "lost", "odd_labels")}
    report = ShardReport(images=len(dataset), **counts)
    for i in range(len(dataset)):
        _check_image(dataset, i, report)
    return report


def _check_image(dataset: ImageDataset, i: int, report: ShardReport) -> None:
    notes: list[str] = []
    try:
        dataset.read(i, notes)
        report.lenient += LENIENT in notes
    except UnreadableImage as error:
        report.faults[error.reason] += 1
        if len(report.unreadable) < _NAMED:
            report.unreadable.append(f"{dataset.name(i)} ({error})")


def _add(report: ShardReport, part: ShardReport) -> None:
    for name in ("images", "duplicates", "incomplete", "lost", "odd_labels", "lenient", "faults", "unreadable"):
        setattr(report, name, getattr(report, name) + getattr(part, name))

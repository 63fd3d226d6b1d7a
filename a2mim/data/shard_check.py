"""Reads everything once, before a training run does: counts, and names what is wrong."""

from collections import Counter
from dataclasses import dataclass, field

from tqdm import tqdm

from a2mim.data.decode import LENIENT, UnreadableImage
from a2mim.data.shards import open_shards, refuse_missing
from a2mim.data.sources import expand


@dataclass
class ShardReport:
    """What check_shards found; `str` of it is one line."""

    shards: int = 0
    images: int = 0
    labelled: int = 0
    duplicates: int = 0  # images left out because an earlier one of their shard has their key
    lenient: int = 0  # damaged images that could be decoded all the same
    faults: Counter = field(default_factory=Counter)  # unreadable images by reason
    unreadable: list[str] = field(default_factory=list)  # each unreadable image: name (reason)
    damaged: list[str] = field(default_factory=list)  # each unusable shard: path, byte and what is wrong

    @property
    def ok(self) -> bool:
        return not self.faults and not self.damaged

    def __str__(self) -> str:
        line = f"{self.images:,} images in {self.shards} shards, {self.labelled:,} labelled"
        line += f", {self.duplicates} with a key that was taken left out" if self.duplicates else ""
        line += f", {self.lenient} {LENIENT}" if self.lenient else ""
        if self.ok:
            return f"{line}: all readable"
        reasons = [f"{count} {reason}" for reason, count in self.faults.most_common()]
        shards = [f"{len(self.damaged)} damaged shards"] if self.damaged else []
        return f"{line}: {', '.join(shards + reasons)}; first: {(self.damaged + self.unreadable)[0]}"


def check_shards(pattern) -> ShardReport:
    """Indexes and decodes every image of shards, named as for open_dataset; FileNotFoundError when any is missing."""
    shards = expand(pattern)
    refuse_missing(shards)
    report = ShardReport(shards=len(shards))
    for shard in tqdm(shards, "checking", unit="shard", leave=False):
        try:
            dataset = open_shards([shard], title=shard)
        except (ValueError, OSError) as error:
            report.damaged.append(str(error))
            continue
        report.images += len(dataset)
        report.labelled += int((dataset.labels >= 0).sum())
        report.duplicates += dataset.duplicates
        for i in range(len(dataset)):
            notes = []
            try:
                dataset.read(i, notes)
                report.lenient += LENIENT in notes
            except UnreadableImage as error:
                report.faults[error.reason] += 1
                report.unreadable.append(f"{dataset.name(i)} ({error})")
    return report

"""The index of one shard, made from the tar's headers: offset, key and label of each sample's image.

index_file.py stores it on disk.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from a2mim.data.keyed import key_of
from a2mim.data.names import class_name, is_class_name
from a2mim.data.shards.label_members import LONGEST, NoClass, label_of, text_of
from a2mim.data.shards.samples import group, split_name
from a2mim.data.shards.tarfiles import files, normal
from a2mim.data.walk import ARRAYS, PICTURES

SAMPLE = np.dtype(
    [
        *(("offset", "<i8"), ("size", "<i8"), ("label", "<i8"), ("key", "<u8")),
        *(("name", "<i4"), ("text", "<i4"), ("folder", "<i4")),  # indices into `texts`, -1 = none
    ]
)
NONE = -1  # no label
_COUNTED = (*PICTURES, *ARRAYS, "cls", "json")  # suffixes of members that count as lost if their link is broken
_MOST_TEXTS = 5000  # if a shard has more different .txt members, they are captions


@dataclass
class ShardIndex:
    """Facts from the headers of a shard.

    Args:
        samples: (N,) SAMPLE, in the order of the archive.
        texts: class names, .txt contents and folders that samples refer to.
        keys: webdataset's keys; None: not loaded, see `index_file.load_keys`.
        duplicates: images left out because an earlier image has the same key.
        incomplete: keys with other members but no image.
        captions: the .txt members are too many or too long to be labels.
        unchecked: the index came from DALI, so not every header was checked.
        odd_labels: samples whose label is no class.
        lost: images and labels that are broken links or sparse files.
    """

    samples: np.ndarray
    texts: list[str] = field(default_factory=list)
    keys: list[str] | None = None
    duplicates: int = 0
    incomplete: int = 0
    captions: bool = False
    unchecked: bool = False
    odd_labels: int = 0
    lost: int = 0


def scan(path: str, name: str | None = None) -> ShardIndex:
    """Reads every header of an archive; raises TarError.

    Args:
        name: the shard's file name, if `path` is a copy. It is part of the samples' keys.
    """
    lost: list[str] = []
    with open(path, "rb") as file:
        read = lambda offset, size: os.pread(file.fileno(), size, offset)  # noqa: E731
        return collect(files(path, lost), read, name or os.path.basename(path), lost)


def collect(members, read, name: str, lost: Sequence[str] = ()) -> ShardIndex:
    """Groups (name, offset, size) of members into samples, see samples.py.

    Args:
        read: `read(offset, size)` returns the content of a label.
        name: the shard's file name.
        lost: names of members whose content is missing; complete only after `found` is exhausted.
    """
    samples = group(members)
    texts, rows, odd = _Texts(), np.zeros(len(samples.images), SAMPLE), 0
    for row, (key, span) in enumerate(samples.images.items()):
        contents = {
            suffix: read(*member_span) if member_span[1] <= LONGEST[suffix] else None
            for suffix, (member_span, _) in samples.beside.get(key, {}).items()
            if suffix in LONGEST
        }
        label, named = NONE, None
        try:
            label, named = label_of(contents)
        except NoClass:
            odd += 1
        folder, slash, _ = normal(key).partition("/")
        numbers = (
            texts.number(named),
            texts.number(text_of(contents), few=True),
            texts.number(folder if slash else None),
        )
        rows[row] = (*span, label, key_of(f"{name}/{key}"), *numbers)
    gone = sum(split is not None and split[1].rpartition(".")[2] in _COUNTED for split in map(split_name, lost))
    return ShardIndex(
        samples=rows,
        texts=list(texts.known),
        keys=list(samples.images),
        duplicates=samples.duplicates,
        incomplete=len(samples.incomplete),
        captions=texts.captions,
        odd_labels=odd,
        lost=gone,
    )


class _Texts:
    """Strings without repetition."""

    def __init__(self):
        self.known, self.captions, self.few = {}, False, 0

    def number(self, text: str | None, few: bool = False) -> int:
        if text is None or (few and self.captions):
            return -1
        text = text if few else class_name(text)
        if text not in self.known:
            self.few += few
            if few and (self.few > _MOST_TEXTS or not (is_class_name(text) or text.isdecimal())):
                self.captions = True
                return -1
            self.known[text] = len(self.known)
        return self.known[text]

"""Groups the members of an archive into samples: an image, and the other members with its key.

WebDataset's rule: the key is the file name up to its first dot, and the rest is the suffix. By this rule `22.05.png`
would be the part "05.png" of the sample "22", and be lost. Here an image suffix at the end makes it an image with the
key "22.05", unless it is a part: in a shard with `a.jpg` and `a.mask.png`, also `b.mask.png` is a part.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from a2mim.data.walk import ARRAYS, PICTURES

Span = tuple[int, int]  # offset and size in bytes
_KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
_NO_SAMPLE = re.compile(r"^__[^/]*__($|/)|(^|/)\._[^/]*$")  # webdataset's own members, and metadata of macOS


@dataclass
class Samples:
    """Members grouped by key, in the order of the archive. Images with several dots in their names come last.

    Args:
        images: (offset, size) of the image of each key.
        suffixes: suffix of the image of each key.
        beside: by key and suffix, (offset, size) and name of each other member; keys without an image are included.
        duplicates: images left out because an earlier image has the same key.
    """

    images: dict[str, Span] = field(default_factory=dict)
    suffixes: dict[str, str] = field(default_factory=dict)
    beside: dict[str, dict[str, tuple[Span, str]]] = field(default_factory=dict)
    duplicates: int = 0

    @property
    def incomplete(self) -> list[str]:
        """Keys that have members but no image."""
        return [key for key in self.beside if key not in self.images]


def split_name(member: str) -> tuple[str, str] | None:
    """(key, suffix) of a member by webdataset's rule; None if it belongs to no sample."""
    match = _KEY.fullmatch(member)
    return None if match is None or _NO_SAMPLE.search(member) else (match.group(1), match.group(2).lower())


def group(members: Iterable[tuple[str, int, int]]) -> Samples:
    """Groups (name, offset, size) of members.

    Of several images with one key, the first is kept. Arrays (.npy) are images only if the archive has no pictures.
    """
    samples, arrays = Samples(), Samples()
    for member, offset, size in members:
        split = split_name(member)
        if split is None:
            continue
        key, suffix = split
        span = (offset, size)
        if suffix in PICTURES:
            if not _take(samples, key, suffix, span):
                samples.duplicates += 1
                if suffix != samples.suffixes[key]:
                    samples.beside.setdefault(key, {}).setdefault(suffix, (span, member))
        elif suffix in ARRAYS:
            _take(arrays, key, suffix, span)
        else:
            samples.beside.setdefault(key, {}).setdefault(suffix, (span, member))
    _add_dotted(samples, PICTURES)
    if not samples.images:
        samples.images, samples.suffixes = arrays.images, arrays.suffixes
        _add_dotted(samples, ARRAYS)
    else:
        for key, span in arrays.images.items():
            samples.beside.setdefault(key, {})["npy"] = (span, f"{key}.npy")
    return samples


def _take(samples: Samples, key: str, suffix: str, span: Span) -> bool:
    if key in samples.images:
        return False
    samples.images[key], samples.suffixes[key] = span, suffix
    return True


def _add_dotted(samples: Samples, suffixes: tuple[str, ...]) -> None:
    """Makes images of members such as 22.05.png and adds the other members of their key: 22.05.cls, else 22.cls."""
    parts = {suffix for key in samples.images for suffix in samples.beside.get(key, ())}
    for key in [key for key in samples.beside if key not in samples.images]:
        others = samples.beside[key]
        dotted = [s for s in others if "." in s and s.rpartition(".")[2] in suffixes and s not in parts]
        if not dotted:
            continue
        del samples.beside[key]
        shared = {suffix: value for suffix, value in others.items() if "." not in suffix}
        for suffix in others:
            if "." in suffix and suffix not in dotted:
                front, _, last = suffix.rpartition(".")
                samples.beside.setdefault(f"{key}.{front}", {})[last] = others[suffix]
        for suffix in dotted:
            span, member = others[suffix]
            name, _, last = member.rpartition(".")
            samples.duplicates += not _take(samples, name, last.lower(), span)
            own = samples.beside.pop(f"{key}.{suffix.rpartition('.')[0]}", {})
            samples.beside[name] = shared | own | samples.beside.get(name, {})

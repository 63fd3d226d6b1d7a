"""Writes shards anew: shuffled over all of them and, by default, re-encoded once.

As in write_shards.py, the division into shards is fixed first and recorded in manifest.json, and a run that was stopped
continues with the missing shards. All members of a sample are copied; the label is written as a number in .cls.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from a2mim.data.access import DEFAULT, Access
from a2mim.data.errors import refuse_machine_faults
from a2mim.data.parallel import each
from a2mim.data.prepare.reencode import reencode
from a2mim.data.prepare.write_shards import NAME, begin, divide
from a2mim.data.remote.addresses import base_name
from a2mim.data.shards.cache import ShardCache
from a2mim.data.shards.indexing import Shard
from a2mim.data.shards.samples import Span, group
from a2mim.data.shards.tar_shards import open_shards
from a2mim.data.shards.tar_store import TarStore
from a2mim.data.shards.tarfiles import files
from a2mim.data.sources import expand
from a2mim.data.walk import ARRAYS, PICTURES
from a2mim.files import delete_partials, partial_path, read_json, write_text
from a2mim.text import ProgressBar

_SLOWEST = 24 * 3600.0  # greatest time to write one shard, in seconds
_RECORD = "written.json"  # counts of what was done to the images of each finished shard


@dataclass(frozen=True)
class Encoding:
    """Short side in pixels and JPEG quality. short_side=None keeps the images' bytes."""

    short_side: int | None = 384
    quality: int = 90

    def __post_init__(self):
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short_side={self.short_side} must be at least 1")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality={self.quality} must be in 1..100")


def reshard(
    source,
    out_dir: str | os.PathLike,
    encoding: Encoding | None = None,
    samples_per_shard: int = 1000,
    max_bytes: int = 1 << 30,
    seed: int | None = 0,
    access: Access | None = None,
) -> dict:
    """Writes shard-000000.tar, …, classes.txt if classes have names, files.txt and manifest.json.

    Args:
        source: shards, as for open_dataset.
        out_dir: created if it is missing. A run with the same arguments continues an earlier one.
        encoding: of the images; None: short side 384, quality 90.
        samples_per_shard, max_bytes: limits of a shard; bytes are those of the source.
        seed: of the shuffle; None keeps the order.

    A sample's key is the line of its old name in files.txt, counted from 0. Returns {"pattern", "images", "shards",
    "written", "kept", "done": number of images by what was done to them, "bytes_before", "bytes_after"}.
    """
    access, out, encoding = access or DEFAULT, Path(out_dir), encoding or Encoding()
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard} must be at least 1")
    dataset = open_shards(expand(source, access), str(source), access)
    assert isinstance(dataset.store, TarStore)
    shards, sizes = dataset.store.shards, dataset.store.sizes
    names = [f"{base_name(shard.address)}/{key}" for shard in shards for key in shard.keys(access)]
    divided = divide(sizes, samples_per_shard, max_bytes, seed)
    manifest = {
        "source": hashlib.blake2b(dataset.fingerprint.encode() + sizes.tobytes(), digest_size=8).hexdigest(),
        "images": len(dataset),
        "skipped_shards": list(dataset.skipped),
        "samples_per_shard": samples_per_shard,
        "max_bytes": max_bytes,
        "seed": seed,
        "shards": len(divided),
        "short_side": encoding.short_side,
        "quality": encoding.quality if encoding.short_side else None,
    }
    begin(out, manifest, names, dataset.class_names)
    delete_partials(out, _SLOWEST)
    record = _recorded(out)
    missing = [k for k in range(len(divided)) if NAME.format(k) not in record or not (out / NAME.format(k)).exists()]
    parts = _parts(dataset, divided, missing, out, encoding, access) if missing else []
    with ProgressBar(total=len(divided), initial=len(divided) - len(missing), desc="writing", unit="shard") as progress:
        for part, outcome in each(write_part, parts, access.workers):
            if isinstance(outcome, Exception):
                raise outcome
            record[os.path.basename(part.path)] = outcome
            write_text(out / _RECORD, json.dumps(record, indent=1) + "\n")
            progress.update()
    return _totals(out, record, manifest, len(missing))


@dataclass
class Part:
    """One shard that is to be written.

    Args:
        samples: (number, source shard, members by suffix, label) of each.
    """

    path: str
    samples: list[tuple[int, int, dict[str, Span], int]]
    shards: dict[int, Shard]
    encoding: Encoding
    access: Access


def _parts(dataset, divided: list[list[int]], missing: list[int], out: Path, encoding, access: Access) -> list[Part]:
    shards, ends = dataset.store.shards, dataset.store.ends
    wanted = [i for k in missing for i in divided[k]]
    shard_of = dict(zip(wanted, np.searchsorted(ends, wanted, side="right").tolist(), strict=True))
    members_of: dict[int, dict[str, Span]] = {}
    items = [(number, shards[number], access) for number in sorted(set(shard_of.values()))]
    for (number, *_), outcome in ProgressBar(each(_members_of, items, access.workers), "reading headers", len(items)):
        if isinstance(outcome, Exception):
            raise outcome
        first = int(ends[number - 1]) if number else 0
        members_of.update((first + row, members) for row, members in enumerate(outcome) if first + row in shard_of)
    parts = []
    for k in missing:
        samples = [(i, shard_of[i], members_of.pop(i), int(dataset.labels[i])) for i in divided[k]]
        used = {number: shards[number] for _, number, *_ in samples}
        parts.append(Part(str(out / NAME.format(k)), samples, used, encoding, access))
    return parts


def _members_of(item: tuple[int, Shard, Access]) -> list[dict[str, Span]]:
    """(offset, size) of each member of each sample of a shard, by suffix, in the order of the index."""
    _, shard, access = item
    samples = group(files(_path(shard, access)))
    return [
        {samples.suffixes[key]: image} | {suffix: span for suffix, (span, _) in samples.beside.get(key, {}).items()}
        for key, image in samples.images.items()
    ]


def write_part(part: Part) -> dict:
    """Writes one shard under a temporary name and renames it; returns counts of what was done to its images."""
    done: Counter[str] = Counter()
    before = 0
    paths = {number: _path(shard, part.access) for number, shard in part.shards.items()}
    try:
        with partial_path(part.path) as unfinished, tarfile.open(unfinished, "w", format=tarfile.GNU_FORMAT) as archive:
            for number, shard, spans, label in part.samples:
                for suffix, content in _contents(paths[shard], spans):
                    if suffix == "cls":
                        continue
                    if suffix in PICTURES + ARRAYS:
                        before += len(content)
                        suffix, content, kind = _encoded(suffix, content, part.encoding)
                        done[kind] += 1
                    _add(archive, f"{number:09d}.{suffix}", content)
                if label >= 0:
                    _add(archive, f"{number:09d}.cls", str(label).encode())
    except OSError as error:
        refuse_machine_faults(error, part.path)
        raise
    return {"done": dict(done), "bytes_before": before, "bytes_after": os.path.getsize(part.path)}


def _encoded(suffix: str, content: bytes, encoding: Encoding) -> tuple[str, bytes, str]:
    """(suffix, content, what was done)."""
    if encoding.short_side is None:
        return suffix, content, "kept"
    encoded = reencode(content, encoding.short_side, encoding.quality)
    return ("jpg", encoded, "re-encoded") if isinstance(encoded, bytes) else (suffix, content, f"kept: {encoded}")


def _contents(path: str, spans: dict[str, Span]) -> list[tuple[str, bytes]]:
    """(suffix, content) of each member of a sample."""
    with open(path, "rb") as file:
        return [(suffix, os.pread(file.fileno(), size, offset)) for suffix, (offset, size) in spans.items()]


def _path(shard: Shard, access: Access) -> str:
    return shard.address if shard.stat is None else os.fspath(ShardCache(access).fetch(shard.address, shard.stat))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _recorded(out: Path) -> dict:
    try:
        recorded = read_json(out / _RECORD)
        return recorded if isinstance(recorded, dict) and all(map(_is_entry, recorded.values())) else {}
    except (OSError, ValueError):
        return {}


def _is_entry(entry: object) -> bool:
    """Whether a record of a written shard has all that the totals need."""
    if not isinstance(entry, dict) or not isinstance(entry.get("done"), dict):
        return False
    counts = [entry.get("bytes_before"), entry.get("bytes_after"), *entry["done"].values()]
    return all(isinstance(count, int) for count in counts)


def _totals(out: Path, record: dict, manifest: dict, written: int) -> dict:
    done: Counter[str] = Counter()
    shards = manifest["shards"]
    for entry in record.values():
        done.update(entry["done"])
    numbers = "000000" if shards == 1 else f"{{000000..{shards - 1:06d}}}"
    totals = {name: sum(entry[name] for entry in record.values()) for name in ("bytes_before", "bytes_after")}
    write_text(out / "manifest.json", json.dumps(manifest | {"done": dict(done)} | totals, indent=2) + "\n")
    return {
        "pattern": str(out / f"shard-{numbers}.tar"),
        "images": manifest["images"],
        "shards": shards,
        "written": written,
        "kept": shards - written,
        "done": dict(done),
        **totals,
    }

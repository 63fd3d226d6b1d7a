"""DALI's index of a shard (`wds2idx`), written and read.

The file is text: "v1.2 <samples>", then a line for each sample with its components as `suffix offset size name`, joined
by blanks (v1.1 has no names). It has no checksums, no size of the shard, and no members that DALI leaves out. So an
index made from it does not know about damaged headers or unlisted members. Only cheap checks are made: offsets are in
order and inside the file, the first and the last header fit, and the archive has its end.

Source: tools/wds2idx.py of NVIDIA DALI, https://github.com/NVIDIA/DALI.
"""

import os
import re
from collections.abc import Iterator

from a2mim.data.access import Access
from a2mim.data.names import cut
from a2mim.data.shards.index import ShardIndex, collect
from a2mim.data.shards.index_file import local_paths, local_stamp, store
from a2mim.data.shards.tarfiles import BLOCK, TarError, members
from a2mim.files import replacing


def index_path(shard: str) -> str:
    """The path that wds2idx uses: the file name up to its first dot, and .idx."""
    folder, name = os.path.split(shard)
    return os.path.join(folder, name.partition(".")[0] + ".idx")


def export_index(shard: str) -> str:
    """Writes the index beside a local shard and returns its path. All headers of the shard are checked."""
    samples: list[tuple[tuple[str, str, str], list]] = []
    for name, offset, size in members(shard):
        folder, slash, file = name.rpartition("/")
        key, _, suffix = file.partition(".")
        if not key:
            continue
        if not samples or samples[-1][0] != (folder, slash, key):
            samples.append(((folder, slash, key), []))
        samples[-1][1].append((suffix, offset, size, name))
    if not samples:
        raise TarError(f"{shard}: no samples to index")
    blanks = any(re.search(r"\s", name) for _, parts in samples for *_, name in parts)
    lines = [f"{'v1.1' if blanks else 'v1.2'} {len(samples)}"]  # v1.2 cannot store names with blanks
    lines += [" ".join(" ".join(map(str, part[: 3 if blanks else 4])) for part in parts) for _, parts in samples]
    path = index_path(shard)
    with replacing(path, errors="surrogateescape") as out:
        out.write("\n".join(lines) + "\n")
    return path


def import_index(shard: str, access: Access) -> ShardIndex:
    """Makes and stores the index of a local shard from DALI's, marked as unchecked; TarError if they disagree."""
    path = index_path(shard)
    if os.stat(path).st_mtime_ns < os.stat(shard).st_mtime_ns:
        raise TarError(f"{path}: older than its shard; make it anew with wds2idx")
    with open(shard, "rb") as file:
        read = lambda offset, size: os.pread(file.fileno(), size, offset)  # noqa: E731
        components = list(_components(path, shard, read))
        _check_places(path, shard, components)
        index = collect(components, read, os.path.basename(shard))
    index.unchecked = True
    store(index, local_paths(shard, access), local_stamp(shard))
    return index


def _components(path: str, shard: str, read) -> Iterator[tuple[str, int, int]]:
    """Yields (name, offset, size) of each component."""
    if not os.path.isfile(path):
        raise TarError(f"{path}: no regular file")
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        version, _, count = file.readline().strip().partition(" ")
        width = {"v1.1": 3, "v1.2": 4}.get(version)
        if width is None or not _is_number(count):
            raise TarError(f"{path}: no index of DALI's version 1.1 or 1.2")
        lines = [line.split() for line in file if line.strip()]
    if len(lines) != int(count):
        raise TarError(f"{path}: {len(lines)} of {count} samples: cut short")
    for line in lines:
        for k in range(0, len(line), width):
            part = line[k : k + width]
            if len(part) < width or not (_is_number(part[1]) and _is_number(part[2])):
                raise TarError(f"{path}: a line that is no index: {' '.join(line)[:60]!r}")
            offset, size = int(part[1]), int(part[2])
            yield part[3] if width == 4 else _header_at(shard, offset)[0], offset, size


def _check_places(path: str, shard: str, components: list[tuple[str, int, int]]) -> None:
    end, length = 0, os.path.getsize(shard)
    for name, offset, size in components:
        if offset % BLOCK or offset < end + BLOCK or offset + size > length:
            raise TarError(f"{path}: {cut(name)} is said to lie at byte {offset} of {shard}, where it cannot be")
        end = offset + size
    if not components:
        raise TarError(f"{path}: lists no sample")
    for name, offset, size in (components[0], components[-1]):
        if _header_at(shard, offset) != (name, offset, size):
            said = f"{cut(name)} does not lie at byte {offset} of {shard}"
            raise TarError(f"{path}: {said}: an index of another shard")
    for _ in members(shard, components[-1][1] - BLOCK):
        pass  # reads to the end of the archive


def _is_number(text: str) -> bool:
    return text.isdecimal() and text.isascii() and len(text) <= 18


def _header_at(shard: str, offset: int) -> tuple[str, int, int]:
    """The member whose content begins at an offset. A name longer than 100 bytes continues in the blocks before."""
    for start in (offset - BLOCK, offset - 3 * BLOCK, offset - 4 * BLOCK):
        if start >= 0:
            try:
                member = next(members(shard, start), None)
            except TarError:
                continue
            if member is not None and member[1] == offset and (start < offset - BLOCK or len(member[0]) < 100):
                return member
    raise TarError(f"{shard}: byte {offset}: no member begins here")

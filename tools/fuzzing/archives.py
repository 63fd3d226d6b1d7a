"""Tar shards, their labels, their indices, and what is kept beside copies of remote ones."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from a2mim.data.access import Access
from a2mim.data.prepare.listing import export_dali, import_dali
from a2mim.data.remote.transfer import Stat
from a2mim.data.shards import index_file
from a2mim.data.shards.cache import ShardCache
from fuzzing.damage import VALUES, flipped, in_json, in_tar, one_bit, one_of
from fuzzing.guard import Subject
from fuzzing.pictures import ACCESS, read_images, saved

NAMES = {"ustar": "{:04}", "pax": "ä" * 60 + "/{:04}", "gnu": "b" * 110 + "/{:04}"}
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def write_shard(path: Path, form: str = "ustar", labels: tuple[str, bytes] = ("cls", b"1"), first: int = 0) -> None:
    """Four small images with the same label, from the picture of number `first` on."""
    with tarfile.open(path, "w", format=FORMATS[form]) as archive:
        for number in range(4):
            name = NAMES[form].format(number)
            for suffix, content in (("jpg", saved("JPEG", number=first + number)), labels):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def shard(form: str, folder: Path) -> Subject:
    path = folder / "train-0000.tar"
    write_shard(path, form)
    return Subject([path], lambda: read_images(path), {path: one_of(flipped, in_tar, in_tar)})


def labels(folder: Path) -> Subject:
    """A label is any JSON or text."""
    path = folder / "train-0000.tar"
    write_shard(path)

    def damage(content: bytes, draw: random.Random) -> bytes:
        made = folder / "made.tar"
        value = draw.choice(VALUES)
        label = json.dumps(draw.choice((value, {"label": value}, {"class": value}, [value]))).encode()
        text = str(value)[:5000].encode("utf-8", "replace") if not isinstance(value, int) else b"9" * 5000
        kind = draw.choice((("json", label), ("json", flipped(label, draw)), ("cls", text), ("txt", text)))
        write_shard(made, labels=kind)
        return made.read_bytes()

    return Subject([path], lambda: read_images(path), {path: damage})


def index(folder: Path) -> Subject:
    """A damaged index never changes what is read: it is made again."""
    path = folder / "train-0000.tar"
    write_shard(path, "pax")
    whole = index_file.make_index(str(path), ACCESS)
    stored = Path(f"{path}.index.npz")
    assert stored.is_file() and whole.keys is not None

    def read() -> None:
        found = index_file.read_index(str(path), ACCESS)
        keys = found.keys or index_file.load_keys([stored], index_file.local_stamp(str(path)))
        assert found.samples.tobytes() == whole.samples.tobytes(), "other samples"
        assert (found.texts, keys) == (whole.texts, whole.keys), "other names"
        assert (found.odd_labels, found.lost, found.duplicates) == (whole.odd_labels, whole.lost, whole.duplicates)

    return Subject([stored], read, {stored: one_of(flipped, one_bit, one_bit)})


def dali(folder: Path) -> Subject:
    """An index of DALI's is not checked as a whole; what it says is an error or a set of images."""
    path = folder / "train-0000.tar"
    write_shard(path)
    export_dali([str(path)], ACCESS)
    written = Path(f"{path}".removesuffix(".tar") + ".idx")
    assert written.is_file()

    def read() -> None:
        import_dali([str(path)], ACCESS)
        read_images(path)

    return Subject([written], read)


def note(folder: Path) -> Subject:
    """What stands beside the copy of a remote shard."""
    access = Access(processes=1, cache_dir=folder / "cache")
    cache, address = ShardCache(access), "http://127.0.0.1:9/train-0000.tar"
    copy = cache._path_of(address)
    copy.parent.mkdir(parents=True)
    write_shard(copy)
    beside = Path(f"{copy}.json")
    size = copy.stat().st_size
    beside.write_text(json.dumps({"size": size, "tag": "a", "changed": copy.stat().st_mtime_ns}))

    def read() -> None:
        found, known = cache.find(address, Stat(size, "a")), cache.known(address)
        assert found in (None, copy), "another file"
        assert known is None or known.size == size, "another size"

    read()
    assert cache.find(address, Stat(size, "a")) == copy
    return Subject([beside], read, {beside: one_of(flipped, in_json)})


KINDS: dict[str, Callable[[Path], Subject]] = {
    **{f"tar-{form}": partial(shard, form) for form in FORMATS},
    "labels": labels,
    "index": index,
    "dali-index": dali,
    "cache-note": note,
}

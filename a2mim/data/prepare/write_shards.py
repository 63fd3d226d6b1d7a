"""Writes a folder of images as webdataset tar shards: shuffled once over all images, with their bytes unchanged.

The division into shards is fixed before anything is written, and recorded in manifest.json. A shard gets its name when
it is complete, so a run that was killed continues with the first missing shard.
"""

import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from a2mim.data import keyed
from a2mim.data.folder import inner, labels_from_paths, what_is_there
from a2mim.data.names import escaped
from a2mim.data.splits import TEST_WORDS, TRAIN_WORDS, find_splits, split_classes, split_word
from a2mim.data.walk import suffix_of, walk
from a2mim.files import delete_partials, partial_path, read_json, telling_full_disk, write_text
from a2mim.text import ProgressBar

NAME = "shard-{:06d}.tar"
FREE = "free some, then run the same command again: shards that are complete stay"
_OVERHEAD = 2048  # greatest number of bytes of tar headers and padding per sample


@dataclass
class Part:
    """One set of shards: a whole folder, or its training or test part.

    Args:
        name: prefix of the shards' names.
        paths: of the images, relative to the source.
        labels: (N,) int64, -1 = none.
        class_names: name of label 0, 1, ..., or None.
        first: number of the first image.
    """

    name: str
    paths: list[str]
    labels: np.ndarray
    class_names: list[str] | None
    first: int = 0

    def file(self, shard: int) -> str:
        return f"{self.name}-{shard:06d}.tar"


def make_shards(
    source_folder: str | os.PathLike,
    out_dir: str | os.PathLike,
    samples_per_shard: int = 1000,
    max_bytes: int = 1 << 30,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes shard-000000.tar, ..., classes.txt if the folder has classes, files.txt and manifest.json.

    A folder with two parts, such as train/ and test/ (see splits.py), becomes train-000000.tar, ... and
    test-000000.tar, ..., with one numbering of classes. Warns about files that it passes over.

    Args:
        source_folder: images, nested to any depth; first-level folders are classes if every image is in one.
        out_dir: created if it is missing. A run with the same arguments continues an earlier one.
        samples_per_shard: greatest number of samples of a shard.
        max_bytes: greatest size of a shard, unless a single image is larger.
        seed: of the shuffle.

    A sample's key is the line of its path in files.txt, counted from 0. Returns {"pattern": the argument for --data,
    "images", "shards", "written", "kept" (shards that existed already), "classes"}, and "test_pattern" if there are two
    parts.
    """
    source, out = Path(source_folder), Path(out_dir)
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard} must be at least 1")
    if not source.is_dir():
        raise FileNotFoundError(f"there is no folder {str(source)!r}")
    parts = _parts(source)
    paths = [path for part in parts for path in part.paths]
    sizes = [(source / path).stat().st_size for path in paths]
    divided = [
        divide(np.array(sizes[part.first : part.first + len(part.paths)]), samples_per_shard, max_bytes, seed)
        for part in parts
    ]
    shards = sum(map(len, divided))
    manifest = {
        "images": len(paths),
        "files": hashlib.blake2b(json.dumps([paths, sizes]).encode(), digest_size=8).hexdigest(),
        "samples_per_shard": samples_per_shard,
        "max_bytes": max_bytes,
        "seed": seed,
        "shards": shards,
    }
    if len(parts) > 1:
        manifest["parts"] = {part.name: len(chosen) for part, chosen in zip(parts, divided, strict=True)}
    begin(out, manifest, paths, parts[0].class_names)
    missing = [
        (part, k, chosen)
        for part, of_part in zip(parts, divided, strict=True)
        for k, chosen in enumerate(of_part)
        if not (out / part.file(k)).exists()
    ]
    kept = len(paths) - sum(len(chosen) for *_, chosen in missing)
    with ProgressBar(total=len(paths), initial=kept, desc="writing shards", unit="img") as progress:
        for part, k, chosen in missing:
            members = [(part.first + i, source / part.paths[i], int(part.labels[i])) for i in chosen]
            _write_shard(out, part, k, members, progress)
    patterns = [_pattern(out, part, len(chosen)) for part, chosen in zip(parts, divided, strict=True)]
    return {
        "pattern": patterns[0],
        "images": len(paths),
        "shards": shards,
        "written": len(missing),
        "kept": shards - len(missing),
        "classes": len(parts[0].class_names or []),
        **({"test_pattern": patterns[1]} if len(patterns) > 1 else {}),
    }


def _pattern(out: Path, part: Part, shards: int) -> str:
    numbers = "000000" if shards == 1 else f"{{000000..{shards - 1:06d}}}"
    return str(out / f"{part.name}-{numbers}.tar")


def _parts(source: Path) -> list[Part]:
    """All images of the source as one part, or a training and a test part with one numbering of classes."""
    folders = {name: inner(folder) for name, folder in find_splits(source).items()} or {"shard": source}
    parts, first = [], 0
    for name, folder in folders.items():
        listing = walk(folder)
        if not listing.images:
            raise ValueError(f"no images in {str(folder)!r}: {what_is_there(folder, listing)}")
        if listing.passed_over():
            warnings.warn(f"{folder}: passed over: {listing.passed_over()}", stacklevel=3)
        labels, class_names = labels_from_paths(listing.images)
        inside = folder.relative_to(source).as_posix()
        paths = listing.images if inside == "." else [f"{inside}/{path}" for path in listing.images]
        parts.append(Part(name, paths, labels, class_names, first))
        first += len(paths)
    if len(parts) == 1 and (said := split_classes(parts[0].class_names)):
        warnings.warn(f"{source}: {said}", stacklevel=3)
    if len(parts) > 1:
        _number_alike(parts)
        others = [f"{folder.name}/" for folder in sorted(source.iterdir()) if _is_other_part(folder, source, folders)]
        if others:
            warnings.warn(f"{source}: {', '.join(others)} left out; make shards of each separately", stacklevel=3)
    return parts


def _is_other_part(folder: Path, source: Path, used: dict[str, Path]) -> bool:
    top = {path.relative_to(source).parts[0] for path in used.values()}
    return folder.is_dir() and folder.name not in top and split_word(folder.name, TRAIN_WORDS + TEST_WORDS)


def _number_alike(parts: list[Part]) -> None:
    """Gives both parts the classes of both. If a part has no classes, neither part gets any."""
    if not all(part.class_names for part in parts):
        for part in parts:
            part.labels, part.class_names = np.full(len(part.paths), -1), None
        return
    names = sorted({name for part in parts for name in part.class_names or ()})
    number = {name: k for k, name in enumerate(names)}
    for part in parts:
        part.labels = np.array([number[name] for name in part.class_names or ()])[part.labels]
        part.class_names = names


def divide(sizes: np.ndarray, samples_per_shard: int, max_bytes: int, seed: int | None) -> list[list[int]]:
    """Lists of ids, one per shard, shuffled unless seed is None. A new shard starts when one is full."""
    order = np.arange(len(sizes))
    if seed is not None:
        order = np.argsort(keyed.hashes(seed, 0, order, 1, keyed.ORDER)[:, 0], kind="stable")
    shards: list[list[int]] = []
    room = -1
    for i in order.tolist():
        need = int(sizes[i]) + _OVERHEAD
        if need > room or len(shards[-1]) == samples_per_shard:
            shards.append([])
            room = max_bytes
        shards[-1].append(i)
        room -= need
    return shards


def begin(out: Path, manifest: dict, paths: list[str], class_names: list[str] | None) -> None:
    """Records what is about to be written. If a record exists, it must be the same."""
    record = out / "manifest.json"
    if record.exists():
        earlier = read_json(record)
        if not isinstance(earlier, dict):
            raise ValueError(f"{record} cannot be read: it holds no record of shards; write to another folder")
        for field, value in manifest.items():
            if earlier.get(field) != value:
                raise ValueError(
                    f"{str(out)!r} holds shards made with {field}={earlier.get(field)!r}, now it is {value!r}; "
                    "write to another folder, or use the earlier value"
                )
        return
    if any(out.glob("*.tar")):
        raise ValueError(f"{str(out)!r} holds tar files but no manifest.json; write to an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "files.txt", "".join(f"{escaped(path)}\n" for path in paths))
    if class_names:
        write_text(out / "classes.txt", "".join(f"{name}\n" for name in class_names))
    write_text(record, json.dumps(manifest, indent=2) + "\n")


def _write_shard(
    out: Path, part: Part, number: int, members: list[tuple[int, Path, int]], progress: ProgressBar
) -> None:
    """Writes one shard under a random name; it gets its own when it is complete."""
    from webdataset import TarWriter

    path = out / part.file(number)
    delete_partials(out, name=path.name)  # what a killed run left of this shard
    with (
        telling_full_disk(path, FREE),
        partial_path(path) as partial,
        partial.open("wb") as file,
        TarWriter(file, encoder=False, mtime=0) as writer,
    ):
        for i, image, label in members:
            sample = {"__key__": f"{i:09d}", suffix_of(image.name): image.read_bytes()}
            if label >= 0:
                sample["cls"] = str(label).encode()
            writer.write(sample)
            progress.update()

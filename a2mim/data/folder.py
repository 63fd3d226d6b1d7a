"""A folder of images, nested to any depth: one shard in sorted order; the first-level folders are the labels."""

import os
from pathlib import Path

import numpy as np

from a2mim.data.dataset import ImageDataset
from a2mim.data.errors import refuse_machine_faults
from a2mim.data.keyed import key_of
from a2mim.data.names import class_name
from a2mim.data.pixel_format import UnreadableImage
from a2mim.data.plain_files import NotPlain, read_file
from a2mim.data.splits import find_splits, split_classes
from a2mim.data.walk import ARRAYS, PICTURES, Walk, list_folder, walk
from a2mim.text import warn_user


class FolderStore:
    """Image files under one root."""

    def __init__(self, root: str | os.PathLike, paths: list[str]):
        self.root, self.paths = os.fspath(root), paths

    def content(self, i: int) -> bytes:
        try:
            return read_file(self.name(i))
        except FileNotFoundError:
            raise UnreadableImage("missing", "the file has gone since the folder was listed") from None
        except NotPlain as error:
            raise UnreadableImage("no image file", error.strerror or str(error)) from None
        except OSError as error:  # no permission, a damaged disk: one image's fault until there are too many
            refuse_machine_faults(error, self.name(i))
            raise UnreadableImage("cannot be opened", error.strerror or str(error)) from None

    def name(self, i: int) -> str:
        return os.path.join(self.root, self.paths[i])


def open_folder(folder: str | os.PathLike, split: str = "train") -> ImageDataset:
    """All images under a folder, or under the folder of `split` if the folder has two splits; see splits.py."""
    root, parts = Path(folder), find_splits(folder)
    if parts:
        if split not in parts:
            raise ValueError(f"split={split!r} of {str(folder)!r} is unknown; choose one of {', '.join(parts)}")
        root = inner(parts[split])
    listing = walk(root)
    if not listing.images:
        raise ValueError(f"no images in {str(root)!r}: {what_is_there(root, listing)}")
    if listing.dangling:
        first, more = listing.dangling[0], len(listing.dangling) - 1
        warn_user(f"{root}: links that lead nowhere are passed over: {first}" + (f" and {more} more" if more else ""))
    labels, class_names = labels_from_paths(listing.images)
    if not parts and (said := split_classes(class_names)):
        warn_user(f"{root}: {said}")
    dataset = ImageDataset(
        store=FolderStore(root, listing.images),
        title=str(root),
        keys=[key_of(path) for path in listing.images],
        labels=labels,
        shard_sizes=[len(listing.images)],
        class_names=class_names,
        splits=tuple(parts),
    )
    dataset.passed_over = listing.passed_over()
    return dataset


def inner(folder: Path) -> Path:
    """The folder itself, or train/train/ if an archive was unpacked into a folder with its own name."""
    inside = folder / folder.name
    alone = [entry.name for entry in list_folder(folder) if not entry.name.startswith(".")] == [folder.name]
    return inside if alone and inside.is_dir() else folder


def labels_from_paths(paths: list[str]) -> tuple[np.ndarray, list[str] | None]:
    """Labels by first-level folder if every image is in one and there are at least two; else -1 and None."""
    first = [path.partition("/")[0] if "/" in path else None for path in paths]
    name_of = {folder: class_name(folder) for folder in set(first) if folder is not None}
    names = sorted(set(name_of.values()))
    if None in first or len(names) < 2:
        return np.full(len(paths), -1), None
    number = {name: k for k, name in enumerate(names)}
    return np.array([number[name_of[folder]] for folder in first if folder is not None]), names


def what_is_there(root: Path, listing: Walk) -> str:
    """A phrase that describes a folder without images."""
    tars = sorted(root.glob("*.tar"))
    if tars:
        return f"it holds {len(tars)} tar files; give them as '{root}/*.tar'"
    passed = f"; passed over: {listing.passed_over()}" if listing.passed or listing.dangling else ""
    return f"looked for {', '.join(PICTURES + ARRAYS)} files in it and in all folders below{passed}"

"""A folder of images, nested as it likes: one shard, in sorted order, labelled by its first-level folders."""

import os
from pathlib import Path

import numpy as np

from a2mim.data.dataset import ImageDataset
from a2mim.data.decode import UnreadableImage
from a2mim.data.keyed import key_of

ARRAYS = ("npy",)  # images only where there is no picture: beside pictures they are embeddings, masks and the like
SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
_SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}


class FolderStore:
    """Image files under one root."""

    def __init__(self, root: Path, paths: list[str]):
        self.root, self.paths = str(root), paths

    def content(self, i: int) -> bytes:
        try:
            return Path(self.name(i)).read_bytes()
        except FileNotFoundError:
            raise UnreadableImage("missing", "the file has gone since the folder was listed") from None
        except OSError as error:  # not permitted, a damaged disk: of this file, until too many say so
            raise UnreadableImage("cannot be opened", error.strerror) from None

    def name(self, i: int) -> str:
        return os.path.join(self.root, self.paths[i])


def open_folder(folder: str | os.PathLike, split: str = "train") -> ImageDataset:
    """All images under a folder, or under its split's folder when it has both train/ and test/ (val/, validation/)."""
    root, splits = Path(folder), ()
    found = {name: [root / p for p in places if (root / p).is_dir()] for name, places in _SPLITS.items()}
    if all(found.values()):
        splits = tuple(_SPLITS)
        if split not in splits:
            raise ValueError(f"split={split!r} of {str(folder)!r} is unknown; choose one of {', '.join(splits)}")
        root = found[split][0]
    paths = list_images(root)
    if not paths:
        raise ValueError(f"no images in {str(root)!r}: {_what_is_there(root)}")
    labels, class_names = labels_from_paths(paths)
    return ImageDataset(
        store=FolderStore(root, paths),
        title=str(root),
        keys=[key_of(path) for path in paths],
        labels=labels,
        shard_sizes=[len(paths)],
        class_names=class_names,
        splits=splits,
    )


def list_images(root: Path) -> list[str]:
    """Relative paths, '/' between folders, sorted; hidden files and folders are left out; links are followed. Of
    arrays, where there is no picture.
    """
    pictures, arrays = [], []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        inside = Path(folder).relative_to(root)
        for name in files:
            if not name.startswith("."):
                found = pictures if has_suffix(name, SUFFIXES) else arrays if has_suffix(name, ARRAYS) else []
                found.append((inside / name).as_posix())
    return sorted(pictures or arrays)


def has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.rpartition(".")[2].lower() in suffixes and "." in name


def labels_from_paths(paths: list[str]) -> tuple[np.ndarray, list[str] | None]:
    """Labels by first-level folder when every image lies in one and there are at least two; else -1 and None."""
    first = [path.partition("/")[0] if "/" in path else None for path in paths]
    names = sorted(set(first) - {None})
    if None in first or len(names) < 2:
        return np.full(len(paths), -1), None
    number = {name: k for k, name in enumerate(names)}
    return np.array([number[name] for name in first]), names


def _what_is_there(root: Path) -> str:
    tars = sorted(root.glob("*.tar"))
    if tars:
        return f"it holds {len(tars)} tar files; give them as '{root}/*.tar'"
    return f"looked for {', '.join(SUFFIXES + ARRAYS)} files in it and in all folders below"

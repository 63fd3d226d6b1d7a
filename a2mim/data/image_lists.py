"""Lists of images: a text file with one image path per line, optionally with a label.

The formats of mmpretrain, Caffe and timm are read: "cat/0.jpg", "cat/0.jpg 3", "cat/0.jpg,cat", or a tab between. A
first line with column names is skipped, and so are empty lines and comments after "#". Paths are relative to the
list's folder.
"""

import os
import re
from pathlib import Path

import numpy as np

from a2mim.data.dataset import ImageDataset
from a2mim.data.folder import FolderStore
from a2mim.data.keyed import key_of
from a2mim.data.names import cut
from a2mim.data.own_labels import numbered
from a2mim.data.plain_files import read_lines
from a2mim.data.walk import ARRAYS, PICTURES, suffix_of

LIST_SUFFIXES = (".txt", ".list", ".lst", ".csv", ".tsv")
_FIELDS = re.compile(r"\s*[,;\t]\s*")
_HEADINGS = {"path", "file", "filename", "image", "img", "filepath", "image_path", "name", "label", "class", "target"}
_LOOKED_AT = 20  # lines


def is_list_of_images(path: str) -> bool:
    """True if one of the first lines of a text file names an image."""
    if not path.lower().endswith(LIST_SUFFIXES) or not os.path.isfile(path):
        return False
    return any(_entry(line) is not None for line in _lines(path)[:_LOOKED_AT])


def open_image_list(path: str) -> ImageDataset:
    """The images of a list, in its order.

    Raises:
        ValueError: a line names no image, or an image is named twice.
        FileNotFoundError: the first image is not where the list says.
    """
    entries = []
    for number, line in enumerate(_lines(path)):
        entry = _entry(line)
        if entry is not None:
            entries.append(entry)
        elif number or not _is_heading(line):
            raise ValueError(f"{path} is a list of images, and this line names none: {line[:80]!r}")
    paths = [name for name, _ in entries]
    if len(set(paths)) < len(paths):
        twice = next(name for name in paths if paths.count(name) > 1)
        raise ValueError(f"{path} is a list of images, and names {cut(twice)!r} more than once; its image would be too")
    root = Path(path).parent
    if not os.path.exists(root / paths[0]):  # False where the system refuses the name, as one of 5,000 letters
        raise FileNotFoundError(
            f"{path} is a list of images, and {cut(paths[0])!r}, counted from the folder of the list, is not there;"
            " put the list into the folder that its paths start from"
        )
    labels, class_names, odd = numbered([label for _, label in entries])
    keys = np.array([key_of(name) for name in paths], np.uint64)
    dataset = ImageDataset(FolderStore(root, paths), path, keys, labels, [len(paths)], class_names)
    dataset.odd_labels = odd
    return dataset


def _lines(path: str) -> list[str]:
    lines = read_lines(path, "a list has one image or shard a line")
    return [line for line in lines if line and not line.startswith("#")]


def _entry(line: str) -> tuple[str, str | None] | None:
    """(path, label or None) of a line; None if the line names no image. A path may contain blanks."""
    if _is_image(line):
        return line, None
    name, *others = _FIELDS.split(line)
    if others and _is_image(name):
        return name, others[0] if len(others) == 1 else ",".join(others)
    name, blank, label = line.rpartition(" ")
    while blank and not _is_image(name):
        name, blank, more = name.rpartition(" ")
        label = f"{more} {label}"
    return (name.strip(), label) if blank else None


def _is_image(name: str) -> bool:
    return suffix_of(name) in PICTURES + ARRAYS and "://" not in name


def _is_heading(line: str) -> bool:
    return all(field.strip("\"' ").lower() in _HEADINGS for field in re.split(r"[,;\t ]+", line) if field)

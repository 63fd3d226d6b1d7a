"""Makes one numbering of classes from the labels in shards.

The first kind that a set has is used:

1. whole numbers (.cls, "label" in .json);
2. class names in the same members;
3. .txt, if all of them are whole numbers or classes in classes.txt (otherwise they are captions);
4. the first-level folder of the members, if every image is in one and there are at least two.
"""

from collections.abc import Sequence

import numpy as np

from a2mim.data.names import whole_number
from a2mim.data.shards.index import NONE, ShardIndex


class LabelsDisagree(ValueError):
    """Some samples have numbers and others names, or a name is missing in classes.txt."""


def resolve(indices: Sequence[ShardIndex], listed: list[str] | None) -> tuple[np.ndarray, list[str] | None]:
    """((N,) int64 labels over all shards, name of label 0, 1, … or None); raises LabelsDisagree.

    Args:
        listed: the lines of classes.txt beside the shards.
    """
    numbers = np.concatenate([index.samples["label"] for index in indices])
    named = any((index.samples["name"] >= 0).any() for index in indices)
    if (numbers >= 0).any():
        if named:
            raise LabelsDisagree("some labels are numbers and others are class names; use one kind for all")
        return numbers, listed if listed and numbers.max() < len(listed) else None
    if named:
        return _by_name(_column(indices, "name"), listed)
    texts = _column(indices, "text")
    if not any(index.captions for index in indices) and any(text is not None for text in texts[1]):
        labels, names = _by_text(*texts, listed)
        if labels is not None:
            return labels, names
    codes, folders = _column(indices, "folder")
    if len(folders) > 1 and (codes >= 0).all():
        return _by_name((codes, folders), None)
    return np.full(len(numbers), NONE, np.int64), None


def _column(indices: Sequence[ShardIndex], column: str) -> tuple[np.ndarray, list[str]]:
    """((N,) int64 numbers of texts, -1 = none; the texts), with one numbering for all shards."""
    known: dict[str, int] = {}
    codes = []
    for index in indices:
        used = np.unique(index.samples[column])
        table = np.full(len(index.texts) + 1, NONE, np.int64)  # index -1, the last one, means no text
        for number in used[used >= 0]:
            table[number] = known.setdefault(index.texts[number], len(known))
        codes.append(table[index.samples[column]])
    return np.concatenate(codes), list(known)


def _by_name(column: tuple[np.ndarray, list[str]], listed: list[str] | None) -> tuple[np.ndarray, list[str]]:
    codes, texts = column
    names = listed or sorted(texts)
    number = {name: k for k, name in enumerate(names)}
    unknown = [text for text in texts if text not in number]
    if unknown:
        raise LabelsDisagree(f"the class {unknown[0]!r} is not in classes.txt, which lists {len(names)}; add it there")
    table = np.array([*(number[text] for text in texts), NONE], np.int64)
    return table[codes], names


def _by_text(codes: np.ndarray, texts: list[str], listed: list[str] | None):
    """(labels, names) of .txt members, or (None, None) for captions."""
    numbers = [whole_number(text) for text in texts]
    if all(number is not None and number >= NONE for number in numbers):
        labels = np.array([*numbers, NONE], np.int64)[codes]
        return labels, listed if listed and labels.max() < len(listed) else None
    if listed and set(texts) <= set(listed):
        return _by_name((codes, texts), listed)
    return None, None

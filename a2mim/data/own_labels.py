"""Labels of a user's data set: from an attribute if there is one, else from the items."""

from collections.abc import Sequence, Sized
from typing import Any, SupportsInt, cast

import numpy as np

from a2mim.data.items import label_number, parts_of
from a2mim.data.names import class_name, is_class_name
from a2mim.text import ProgressBar

_BESIDE = ("targets", "labels")  # attributes of torchvision's data sets
_COLUMNS = ("label", "labels", "cls", "target")  # columns of Hugging Face's data sets


def labels_outside(source: Any) -> Sequence[object] | None:
    """The labels of all items without reading the items; None if the data set does not offer them.

    Looks into torch's Subset and ConcatDataset, and reads the label column of a Hugging Face data set.
    """
    for name in _BESIDE:
        labels = getattr(source, name, None)
        if labels is not None and not callable(labels) and isinstance(labels, Sized) and len(labels) == len(source):
            return cast(Sequence[object], labels)  # a list, an array or a tensor
    if hasattr(source, "dataset") and isinstance(getattr(source, "indices", None), Sized):
        labels = labels_outside(source.dataset)
        return None if labels is None else [labels[int(i)] for i in source.indices]
    if isinstance(getattr(source, "datasets", None), list | tuple):
        parts = [labels_outside(part) for part in source.datasets]
        known = [part for part in parts if part is not None]
        return None if len(known) < len(parts) else [label for part in known for label in part]
    column = _column(source)
    return None if column is None else list(source[column])


def class_names_of(source: Any) -> list[str] | None:
    """`classes` of the data set, or of the set that a Subset is part of; or the names of a Hugging Face data set."""
    classes = getattr(source, "classes", None)
    if isinstance(classes, list | tuple):
        return [class_name(str(name)) for name in classes]
    if hasattr(source, "dataset") and hasattr(source, "indices"):
        return class_names_of(source.dataset)
    if isinstance(getattr(source, "datasets", None), list | tuple):
        parts = [class_names_of(part) for part in source.datasets]
        return parts[0] if parts and all(names == parts[0] for names in parts) else None
    column = _column(source)
    return None if column is None else getattr(source.features[column], "names", None)


def read_labels(source: Any) -> tuple[np.ndarray, list[str] | None, int]:
    """`numbered` for labels that only the items have: reads each item once, with its image."""
    labels = []
    for i in ProgressBar(
        range(len(source)), "reading labels", unit="item", leave=False, disable=len(source) < 1000 or None
    ):
        try:
            labels.append(parts_of(source[i])[1])
        except Exception:  # an item that cannot be made is counted as unreadable when it is read
            labels.append(None)
    return numbered(labels)


def numbered(stored: Sequence[object]) -> tuple[np.ndarray, list[str] | None, int]:
    """((N,) int64 labels, -1 = none; class names if the labels are names; number of labels that are no class)."""
    names = {label for label in stored if isinstance(label, str)}
    if names and all(map(is_class_name, names)) and all(isinstance(label, str | None) for label in stored):
        known = sorted(set(map(class_name, names)))
        number = {name: k for k, name in enumerate(known)}
        numbers = [-1 if label is None else number[class_name(str(label))] for label in stored]
        return np.array(numbers, np.int64), known, 0
    labels = np.array([label_number(label) for label in stored], np.int64)
    missing = [label for label, number in zip(stored, labels, strict=True) if number < 0]
    return labels, None, sum(label is not None and not _means_none(label) for label in missing)


def _means_none(label: object) -> bool:
    """-1 stands for no label, as in torchvision's unlabelled parts."""
    try:
        return int(cast(SupportsInt, label)) == -1
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def _column(source: Any) -> str | None:
    names = getattr(source, "column_names", None)
    if not isinstance(names, list) or not hasattr(source, "features"):
        return None
    return next((name for name in _COLUMNS if name in names), None)

"""Gives the training set and the test set one numbering of classes, so that label 3 means the same in both."""

import copy

import numpy as np

from a2mim.data.dataset import ImageDataset
from a2mim.data.decode import UnreadableImage
from a2mim.data.names import cut
from a2mim.text import warn_user


def match_labels(train: ImageDataset, test: ImageDataset) -> ImageDataset:
    """The test set, relabelled with the training set's number for each class name.

    If only one set has class names, labels are matched by number, and a warning states the mapping. A test class that
    the training set lacks gets a new number, with a warning: its images count, but no prediction can be right. A
    warning also says when both sets hold the same images.

    Raises:
        ValueError: a set has no labels, or has labels that are no classes; one name belongs to two classes; or the two
            sets have no class in common.
    """
    for dataset in (train, test):
        dataset.read_labels()
        if dataset.label_fault:
            raise ValueError(f"{dataset.title} cannot be judged: {dataset.label_fault}")
        if dataset.odd_labels:
            raise ValueError(
                f"{dataset.odd_labels} of the {len(dataset)} images in {dataset.title} have a label that is no class"
                " (a list, a share, a text, a number of more than 64 bits); a judge needs one whole number or class"
                " name an image: mend these labels or leave them out"
            )
        if len(dataset) and not (dataset.labels >= 0).any():
            raise ValueError(
                f"none of the {len(dataset)} images in {dataset.title} has a label; give shards with .cls members,"
                " or a folder with one folder a class"
            )
    if _same_images(train, test):
        warn_user(f"{test.title} is also the training set: what is measured on it says nothing about new images")
    if not train.class_names or not test.class_names:
        _tell_mapping(train, test)
        return test
    if train.class_names == test.class_names:
        return test
    matched = copy.copy(test)
    matched.labels, matched.class_names = _renumbered(train, test)
    matched.__dict__.pop("fingerprint", None)  # computed with the old labels
    return matched


def _tell_mapping(train: ImageDataset, test: ImageDataset) -> None:
    """Warns when only one of the sets has class names: label 3 of the other set may mean another class."""
    if bool(train.class_names) == bool(test.class_names):
        return
    named, numbered = (train, test) if train.class_names else (test, train)
    names = named.class_names
    mapping = ", ".join(f"{label} = {names[label]}" for label in np.unique(numbered.labels) if 0 <= label < len(names))
    most = int(numbered.labels.max())
    beyond = f"; its labels go up to {most}, and there are only {len(names)} names" if most >= len(names) else ""
    warn_user(
        f"{numbered.title} has no class names, so its labels are matched by number with the names of {named.title}:"
        f" {cut(mapping) or 'none'}{beyond}. Check this, or give both sets names or both numbers"
    )


def _renumbered(train: ImageDataset, test: ImageDataset) -> tuple[np.ndarray, list[str]]:
    """((N,) labels of the test set in the training set's numbers, the class names in that order)."""
    used = [test.class_names[label] for label in np.unique(test.labels[test.labels >= 0])]
    unknown = [name for name in dict.fromkeys(used) if name not in train.class_names]
    if len(unknown) == len(set(used)):
        raise ValueError(
            f"the test set {test.title} and the training set {train.title} have no class in common: the test set has"
            f" {_few(unknown)}, the training set {_few(train.class_names)}"
        )
    if unknown:
        warn_user(
            f"the test set {test.title} has classes that the training set {train.title} does not have: {_few(unknown)};"
            " their images are counted and never right"
        )
    twice = [name for name in used if train.class_names.count(name) + test.class_names.count(name) > 2]
    if twice:
        raise ValueError(
            f"classes of {train.title} and {test.title} cannot be matched by name: {_few(twice)} names more than one;"
            " give both the same list of classes"
        )
    names = [*train.class_names, *unknown]
    number = {name: label for label, name in enumerate(names)}
    mapped = np.array([number.get(name, -1) for name in test.class_names], np.int64)
    return np.where(test.labels >= 0, mapped[test.labels], -1), names


def _same_images(train: ImageDataset, test: ImageDataset) -> bool:
    """Fingerprints depend on names, and two sets can share names: the pixels of the first image are compared too."""
    if train.fingerprint != test.fingerprint:
        return False
    try:
        return not len(train) or np.array_equal(train.read(0), test.read(0))
    except UnreadableImage:
        return True


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

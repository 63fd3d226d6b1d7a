"""Finds the training and the test folder of a data set by their names.

Examples: train/ and valid/ (Roboflow), Train/Test, training/validation, seg_train/seg_test, train2017/val2017. If they
were taken as classes, the model would train on the test images.
"""

import os
import re
from pathlib import Path

from a2mim.data.walk import list_folder

TRAIN_WORDS = ("train", "training", "trn", "trainset", "trainval")
TEST_WORDS = (  # in order of preference
    *("test", "testing", "tst", "testset", "val", "valid", "validation", "valset", "dev", "devel", "development"),
    *("eval", "evaluation", "holdout"),
)
_WORD = re.compile(r"([A-Z]+(?![a-z])|[A-Z]?[a-z]+)")  # a word of trainA, Train_Set, TRAIN and train2017


def find_splits(root: str | os.PathLike) -> dict[str, Path]:
    """{"train": folder, "test": folder} directly under root, or {} if root holds one set.

    A pair is two folders whose names differ only in the word: train/ and test/, seg_train/ and seg_test/. Several pairs
    (cat_train/, cat_test/, dog_train/, …) are classes, not a split.
    """
    folders = [entry.name for entry in list_folder(root) if not entry.name.startswith(".") and _is_folder(entry)]
    trains: dict[str, dict[str, str]] = {}
    tests: dict[str, dict[str, str]] = {}
    for name in folders:
        for words, named in ((TRAIN_WORDS, trains), (TEST_WORDS, tests)):
            split = _without_word(name, words)
            if split is not None:
                named.setdefault(split[0], {})[split[1]] = name
    pairs = [frame for frame in trains if frame in tests]
    if "" in pairs or len(pairs) == 1:
        frame = "" if "" in pairs else pairs[0]
        train, test = trains[frame], tests[frame]
    elif not pairs and len(trains) == 1 and _count(trains) + _count(tests) == len(folders) and tests:
        train = next(iter(trains.values()))  # train/ and test1/, and no other folder
        test = {word: name for named in tests.values() for word, name in named.items()}
    else:
        return {}
    return {"train": Path(root) / _first(train, TRAIN_WORDS), "test": Path(root) / _first(test, TEST_WORDS)}


def split_classes(class_names: list[str] | None, what: str = "classes") -> str:
    """A warning if two names of classes or folders look like a training and a test part; "" if not."""
    trains = [name for name in class_names or () if _without_word(name, TRAIN_WORDS)]
    tests = [name for name in class_names or () if _without_word(name, TEST_WORDS) and name not in trains]
    if not trains or not tests:
        return ""
    return (
        f"the {what} {trains[0]!r} and {tests[0]!r} have the names of parts of a set: if they are parts, the model"
        " trains on the test images; give each part by itself, with --data and --test-data"
    )


def split_word(name: str, words: tuple[str, ...]) -> bool:
    """True if one of the words stands alone in a name."""
    return _without_word(name, words) is not None


def _without_word(name: str, words: tuple[str, ...]) -> tuple[str, str] | None:
    """(the name without the word, the word), in lower case; None if none of the words stands alone in the name."""
    parts = [part.lower() for part in _WORD.split(name)]
    for position, part in enumerate(parts):
        if part in words:
            return re.sub(r"[^a-z]+", "_", "".join(parts[:position] + parts[position + 1 :])).strip("_"), part
    return None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for example a link that leads to itself
        return False


def _count(named: dict[str, dict[str, str]]) -> int:
    return sum(map(len, named.values()))


def _first(named: dict[str, str], words: tuple[str, ...]) -> str:
    return next(named[word] for word in words if word in named)

"""Results as files: results.json holds everything, one line of results.csv what a comparison is sorted by.

A result is a dict of plain values. It keeps the answer to every test image ("1" right, "0" wrong, "-" not judged), so
that two results of one test set can be paired.
"""

import csv
import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from a2mim.files import appending, open_lock, read_json, telling_full_disk, write_text

LOCK = ".results.lock"
REQUIRED = (
    *("protocol", "protocol_hash", "constants", "encoder", "encoder_hash", "data", "data_fingerprint"),
    *("top1_last", "top1_best", "interval", "n_test", "correct"),
)
COLUMNS = (
    *("protocol", "protocol_hash", "overridden", "encoder", "encoder_hash", "data", "test_data", "data_fingerprint"),
    *("metric", "top1_last", "top1_best", "low", "high", "n_test", "constants"),
)


def write_result(result: dict, folder: str | os.PathLike) -> Path:
    """Adds a result to `folder`/results.json, in place of an earlier one of the same run, and a line to results.csv.

    Args:
        result: has at least the keys of REQUIRED. "interval" is (low, high) in percent, "correct" a (M,) bool tensor or
            list over the test set, or such a string as `pack` makes. "top1_best" may be None where there is one number
            only. "metric" names what the numbers are where they are not top-1 accuracy. Other keys are kept.

    Returns:
        the path of results.json.

    Raises:
        ValueError: a key is missing, a value is not plain, or results.json in that folder is not such a file.
    """
    if missing := [key for key in REQUIRED if key not in result]:
        raise ValueError(f"the result has no {', '.join(missing)}: a result needs {', '.join(REQUIRED)}.")
    result = {"metric": "top-1 %"} | result | {"correct": pack(result["correct"])}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    with open_lock(folder / LOCK):  # results of several runs may go to one folder
        known = read_results(path) if path.exists() else []
        kept = [other for other in known if _identity(other) != _identity(result)]
        try:
            text = json.dumps([*kept, result], indent=1, ensure_ascii=False)
        except TypeError as error:
            raise ValueError(f"the result of {result['protocol']} holds more than plain values: {error}.") from None
        write_text(path, text + "\n")
        with telling_full_disk(folder / "results.csv", "make room, and run the command again"):
            _append(folder / "results.csv", result)
    return path


def read_results(path: str | os.PathLike) -> list[dict]:
    """The results in a results.json, or in a folder that holds one.

    Raises:
        FileNotFoundError: there is none. ValueError: it is something else.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no such folder or file: {path}; give a run, a folder that evaluate wrote, or its JSON."
        )
    if path.is_dir():
        path = _in_folder(path)
    try:
        found = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from None
    whole = isinstance(found, list) and all(map(_is_result, found))
    if not whole:
        raise ValueError(f"{path} is not a results file of a2mim: it must be a list of results.")
    return found


def _is_result(found: object) -> bool:
    """Whether every key is present, and the values used in computations have the right type."""
    if not isinstance(found, dict) or set(REQUIRED) - set(found):
        return False
    correct, scores = found["correct"], found.get("scores", {})
    return (
        isinstance(correct, str)
        and not set(correct) - set("01-")
        and isinstance(found["constants"], dict)
        and isinstance(scores, dict)
        and all(isinstance(v, int | float) and abs(v) <= sys.float_info.max for v in scores.values())
    )


def _in_folder(folder: Path) -> Path:
    """Path of results.json; the error for a run without one says how to make it."""
    path = folder / "results.json"
    if path.is_file():
        return path
    if (folder / "summary.json").is_file():
        raise FileNotFoundError(
            f"the run {folder} has no results.json: a run writes one when it has finished and was judged on labelled"
            f" test images; else run a2mim evaluate {folder} --data … --test-data … --out {folder}"
        )
    raise FileNotFoundError(f"{folder} holds no results.json: give a run, or a folder that evaluate wrote.")


def pack(correct) -> str:
    """(M,) bool, or numbers in 0, 1 and -1 (not judged) -> "10-1…"; a string is returned as it is."""
    if isinstance(correct, str):
        return correct
    values = correct.tolist() if isinstance(correct, Tensor) else correct
    return "".join("-" if value < 0 else str(int(value)) for value in values)


def unpack(correct: str | Tensor) -> Tensor:
    """The inverse: (M,) int8 in 0, 1 and -1. A result that was not written yet has its answers as a tensor."""
    if isinstance(correct, Tensor):
        return correct.to(torch.int8)
    return torch.tensor([{"0": 0, "1": 1, "-": -1}[c] for c in correct], dtype=torch.int8)


def _identity(result: dict) -> tuple:
    return tuple(result.get(key) for key in ("protocol", "protocol_hash", "encoder_hash", "data_fingerprint"))


def _append(path: Path, result: dict) -> None:
    low, high = result["interval"]
    row = {key: result.get(key, "") for key in COLUMNS} | {"low": low, "high": high}
    row |= {key: json.dumps(row[key]) for key in ("constants", "overridden") if row[key]}
    new = not path.exists() or not path.stat().st_size
    with appending(path, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)

"""Repeats the proof of a receipt: later, on another machine, or with another environment's interpreter."""

import sys
from pathlib import Path

from a2mim.export.contracts import check_contract
from a2mim.export.facts import NETWORK, check_contents, compare_page, facts_of
from a2mim.export.receipt import check_in_fresh_process, hash_files
from a2mim.export.target import ExportError
from a2mim.export.targets import TARGETS
from a2mim.files import read_object
from a2mim.text import shortened

NEEDED = ("target", "architecture", "sha256", "tensors", "check")


def verify(folder: str | Path, python: str = sys.executable, network: str | None = None) -> list[dict]:
    """Repeats the proof of one exported folder, or of every one directly below; returns what was found for each.

    What is run are a2mim's own lines for the target, filled with checked values. README.md is only compared with them.
    Names and arguments in the folder's files are looked up in closed tables first. A folder of torch-export or
    torchscript is a program all the same: docs/security.md says what loading it may do.

    Args:
        network: dotted path of a network of your own, which may then be imported; a folder alone may not choose that.
        python: the interpreter that loads the export; its environment need not have a2mim.

    Returns:
        "folder", "target", "architecture", "mode" ("loaded", or "contract only" where the target is not installed),
        "largest_difference", "keys" and "versions" of each.

    Raises:
        ExportError: a file, a key or a feature is not what the receipt says.
        FileNotFoundError, ValueError: no receipt, or one that cannot be read.
    """
    folder = Path(folder)
    folders = [
        path.parent for path in (folder / "receipt.json", *sorted(folder.glob("*/receipt.json"))) if path.is_file()
    ]
    if not folders:
        raise FileNotFoundError(f"{folder} holds no receipt.json: give a folder that `a2mim export` has written.")
    return [_verify_one(path, python, network) for path in folders]


def _verify_one(folder: Path, python: str, network: str | None) -> dict:
    receipt = read_receipt(folder)
    if odd := [path for path in sorted(folder.rglob("*")) if not path.is_file() and not path.is_dir()]:
        raise ExportError(f"{odd[0]} is no regular file: an export holds nothing else, and none of it was loaded.")
    found = hash_files(folder)
    wrong = [name for name, digest in receipt["sha256"].items() if found.get(name) != digest]
    if wrong:
        states = ", ".join(f"{name} is {'not the same' if name in found else 'missing'}" for name in wrong)
        raise ExportError(f"{folder} is not what its receipt was written for: {states}.")
    lines = lines_of(folder, receipt, network)
    if receipt["target"] == NETWORK and network != receipt["architecture"]:
        withheld = [receipt["architecture"].partition(".")[0]]  # its tensors are compared, but it is not imported
        proof = receipt | {"check": receipt["check"] | {"withheld": withheld, "packages": withheld}}
        outcome = recheck(folder, proof, "", python) | {"withheld": receipt["architecture"]}
    else:
        outcome = recheck(folder, receipt, lines, python)
    if problem := outcome.pop("problem"):
        raise ExportError(f"{folder} does not give {receipt['target']} the {receipt['architecture']}: {problem}.")
    return {"folder": str(folder), "target": receipt["target"], "architecture": receipt["architecture"], **outcome}


def lines_of(folder: Path, receipt: dict, network: str | None = None) -> str:
    """The lines that load the folder, once everything in it that they would act upon is checked; "" for a network of
    somebody's own that the user did not name.

    Raises:
        ExportError: README.md shows other lines.
        ValueError: a file names what it may not name.
    """
    target, request = TARGETS[receipt["target"]], receipt["check"]
    facts = facts_of(target.name, receipt["architecture"], receipt, request, folder, network)
    check_contents(target, facts, request, folder)
    if target.name == NETWORK and network != facts.architecture:
        return ""  # whether it is built from a configuration is not known without importing it
    return compare_page(target, facts, folder)


def read_receipt(folder: Path) -> dict:
    """What the receipt says; ValueError where it is no receipt that can be verified."""
    path = folder / "receipt.json"
    try:
        receipt = read_object(path)
    except ValueError:
        raise ValueError(f"{path} cannot be read: export the encoder again.") from None
    if lacking := [key for key in NEEDED if key not in receipt]:
        raise ValueError(f"{path} lacks {', '.join(lacking)}: it is of an older a2mim, export the encoder again.")
    if not isinstance(receipt["target"], str) or receipt["target"] not in TARGETS:
        raise ValueError(f"{path} is for {shortened(receipt['target'])!r}, which is none of {', '.join(TARGETS)}.")
    if fault := fault_of_receipt(receipt):
        raise ValueError(f"{path} has no {fault} as a2mim writes it: export the encoder again.")
    return receipt


def fault_of_receipt(receipt: dict) -> str:
    """The first entry of another type than is read later, by name; "" where there is none."""
    request, tensors = receipt["check"], receipt["tensors"]
    if not isinstance(request, dict):
        return "check"
    contract, given = request.get("contract"), receipt.get("dynamic", [])
    fits = {
        "sha256": isinstance(receipt["sha256"], dict),
        "dynamic": isinstance(given, dict) or _are_texts(given),
        "tensors": isinstance(tensors, dict) and all(map(_is_tensor, tensors.values())),
        **{f"check.{key}": _are_texts(request.get(key)) for key in ("packages", "left_random")},
        **{f"check.{key}": isinstance(request.get(key), str) for key in ("weights", "file_prefix", "model_prefix")},
        "check.preprocessing": isinstance(request.get("preprocessing"), dict),
        "check.tolerance": isinstance(request.get("tolerance"), float),
        "check.contract": ("contract" in request and contract is None)
        or (isinstance(contract, list) and len(contract) == 2 and isinstance(contract[1], dict)),
    }
    return next((key for key, right in fits.items() if not right), "")


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_tensor(stated: object) -> bool:
    """Whether an entry under "tensors" has a shape and a hash."""
    if not isinstance(stated, dict) or not isinstance(stated.get("sha256"), str):
        return False
    shape = stated.get("shape")
    return isinstance(shape, list) and all(isinstance(size, int) for size in shape)


def recheck(folder: Path, proof: dict, lines: str, python: str = sys.executable) -> dict:
    """The outcome of check.py, with "problem" from it, or else from the target's contract."""
    outcome = check_in_fresh_process(folder, proof["check"] | {"tensors": proof["tensors"]}, lines, python)
    outcome["problem"] = outcome["problem"] or check_contract(proof["check"]["contract"], proof["tensors"])
    return outcome

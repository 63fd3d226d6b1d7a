"""A receipt's proof, repeated: later, on another machine, or under another environment's interpreter."""

import json
import sys
from pathlib import Path

from a2mim.export.contracts import check_contract
from a2mim.export.receipt import check_in_fresh_process, hash_files
from a2mim.export.target import ExportError

NEEDED = ("target", "architecture", "sha256", "tensors", "check")


def verify(folder: str | Path, python: str = sys.executable) -> list[dict]:
    """Repeats the proof of one exported folder, or of every one directly below; returns what was found for each.

    The lines of its README.md are run, as its user would run them: verify what you trust.

    Args:
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
    return [_verify_one(path, python) for path in folders]


def _verify_one(folder: Path, python: str) -> dict:
    receipt = read_receipt(folder)
    found = hash_files(folder)
    wrong = [name for name, digest in receipt["sha256"].items() if found.get(name) != digest]
    if wrong:
        states = ", ".join(f"{name} is {'not the same' if name in found else 'missing'}" for name in wrong)
        raise ExportError(f"{folder} is not what its receipt was written for: {states}.")
    outcome = recheck(folder, receipt, python)
    if problem := outcome.pop("problem"):
        raise ExportError(f"{folder} does not give {receipt['target']} the {receipt['architecture']}: {problem}.")
    return {"folder": str(folder), "target": receipt["target"], "architecture": receipt["architecture"], **outcome}


def read_receipt(folder: Path) -> dict:
    """What the receipt says; ValueError where it is no receipt that can be verified."""
    path = folder / "receipt.json"
    try:
        receipt = json.loads(path.read_text(encoding="utf-8"))
        lacking = [key for key in NEEDED if key not in receipt]
    except (ValueError, TypeError):
        raise ValueError(f"{path} cannot be read: export the encoder again.") from None
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}: it is of an older a2mim, export the encoder again.")
    return receipt


def recheck(folder: Path, proof: dict, python: str = sys.executable) -> dict:
    """The outcome of check.py, with "problem" from it, or else from the target's contract."""
    outcome = check_in_fresh_process(folder, proof["check"] | {"tensors": proof["tensors"]}, python)
    outcome["problem"] = outcome["problem"] or check_contract(proof["check"]["contract"], proof["tensors"])
    return outcome

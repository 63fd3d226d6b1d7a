"""The proof of an export: the lines that load it are run in a fresh process, compared, and written down with hashes."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from a2mim.export import check
from a2mim.export.target import ExportError

__all__ = ["TOLERANCE", "ExportError", "check_in_fresh_process"]

TOLERANCE = 1e-5  # of the largest feature; float32 on another number of threads differs by about 1e-6
OFFLINE = {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true", "CUDA_VISIBLE_DEVICES": ""}


def check_in_fresh_process(folder: Path, proof: dict, lines: str, python: str = sys.executable) -> dict:
    """The outcome of check.py; a process that dies is a problem too. No network is used.

    Args:
        proof: what a receipt keeps under "check", and its "tensors".
        lines: what is run; a template of a2mim's, never a text from the folder.
        python: the interpreter, which may belong to an environment without a2mim.
    """
    asked = json.dumps(proof | {"folder": str(Path(folder).resolve()), "lines": lines})
    try:
        process = subprocess.run(
            [python, check.__file__],
            input=asked,
            env=os.environ | OFFLINE | _paths_of(proof),
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise ValueError(f"{python} is no interpreter that can be started ({error.strerror}).") from None
    answers = [line for line in process.stdout.splitlines() if line.startswith('{"mode": ')]  # libraries print too
    if process.returncode or not answers:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        return {"problem": f"the check in a fresh process died with code {process.returncode}: {reason}"}
    return json.loads(answers[-1])


def _paths_of(proof: dict) -> dict[str, str]:
    """PYTHONPATH with the folders of packages that are not installed but found here: a user's own network."""
    names = set(proof.get("packages", ())) - {"a2mim", *proof.get("withheld", ())}
    specs = [importlib.util.find_spec(name) for name in sorted(names) if name.isidentifier()]
    files = [Path(spec.origin) for spec in specs if spec is not None and spec.origin]
    own = [file.parents[file.name == "__init__.py"] for file in files if "site-packages" not in file.parts]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(map(str, own)))} if own else {}


def state_tensors(tensors: dict[str, Tensor]) -> dict[str, dict]:
    """Shape and sha256 of each, by key."""
    return {key: {"shape": list(value.shape), "sha256": check.hash_tensor(value)} for key, value in tensors.items()}


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file below the folder but the receipt, by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "receipt.json")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names, whatever file holds them."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

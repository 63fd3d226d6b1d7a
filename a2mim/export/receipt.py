"""The proof of an export: loaded back in a fresh process, compared, and written down with hashes."""

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

import a2mim

TOLERANCE = 1e-5  # of the largest feature; float32 on another number of threads differs by about 1e-6


class ExportError(ValueError):
    """What was loaded back is not what was exported."""


def check_in_fresh_process(folder: Path, reference: Path) -> dict:
    """The outcome of `a2mim.export.check`; a process that dies is a problem too. No network is used."""
    package_root = str(Path(a2mim.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    process = subprocess.run(
        [sys.executable, "-m", "a2mim.export.check", str(folder), str(reference)],
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    lines = process.stdout.splitlines()
    if process.returncode or not lines:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        return {"problem": f"the check in a fresh process died with code {process.returncode}: {reason}"}
    return json.loads(lines[-1])


def describe(folder: Path, files: tuple[str, ...]) -> dict:
    """When, and hashes: of each file, and of the tensors whatever file holds them."""
    return {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files},
        "tensors_sha256": hash_tensors(load_file(folder / "model.safetensors")),
    }


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)

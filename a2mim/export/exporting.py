"""From a source to folders that other libraries load. No folder without a receipt, no receipt without the proof."""

import copy
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from a2mim.batchnorm import calibrate_batchnorm
from a2mim.evaluation.shown import Records
from a2mim.export.card import published, tell_training, write_card
from a2mim.export.facts import compare_page, facts_of
from a2mim.export.receipt import (
    TOLERANCE,
    hash_files,
    hash_tensors,
    now,
    state_tensors,
)
from a2mim.export.target import ExportError, Subject, Target, Written, flatten
from a2mim.export.targets import TARGETS, check_targets, possible
from a2mim.export.verify import recheck
from a2mim.files import STAGING, delete_staging, refuse_linked_folders, telling_full_disk, write_json
from a2mim.pixels import Preprocessing
from a2mim.weights import loading
from a2mim.wiring.networks import OwnNetwork

COLUMNS = ("target", "folder", "architecture", "largest_difference", "tolerance", "mode")  # what a notebook shows
_SLOWEST = 24 * 3600.0  # seconds that an export can take
RANDOM = "Not at all: a name was exported, and the weights are random."


def export(
    source: str | Path,
    to: Iterable[str] = ("timm",),
    out_dir: str | Path | None = None,
    batches: Iterable[Tensor] | None = None,
    license: str = "",
    python: str = sys.executable,
    device: torch.device | str = "cpu",
) -> list[dict]:
    """Writes one folder a target below `out_dir`; returns their receipts, each with its "folder".

    Args:
        source: what `load_encoder` takes: a run folder, a checkpoint, an exported folder, a timm name (random weights).
        to: names from TARGETS, or "all" for every one that can take the encoder.
        out_dir: where the folders go; None: "export" in the run folder, or beside what the source is.
        batches: normalised float images (B, C, H, W) to calibrate BatchNorm on; None leaves its statistics alone.
        license: of the weights, as model hubs spell it; "": none was chosen, and the card says so.
        python: the interpreter that loads what was written, where that shall be another environment's.
        device: where BatchNorm is calibrated; all else is done on the CPU.

    Raises:
        ExportError: the loaded encoder differs from the exported one; the folder is then unchanged.
        ValueError, FileNotFoundError: an unknown target, one that cannot take this architecture, or a source that
            cannot be loaded.

    Examples:
        >>> (receipt,) = a2mim.export("runs/tiny", to=["safetensors"], out_dir="exported")
        >>> receipt["target"], receipt["mode"]
        ('safetensors', 'loaded')
    """
    names = [to] if isinstance(to, str) else list(to)
    check_targets(names)
    found = loading.read_source(source)
    model, preprocessing = loading.build(found)
    if out_dir is None:
        out_dir = _beside(Path(source), found)
        refuse_linked_folders(out_dir)
    out_dir = Path(out_dir)
    trained = RANDOM if found.tensors is None else tell_training(source)
    told = {"source": str(source), "trained": trained, "license": license}
    names = possible(Subject(model, found.model_args, preprocessing, found.frozen, **told), names)
    batchnorm = _calibrate(model.to(device), batches, found.calibrated)
    subject = Subject(model.cpu(), found.model_args, preprocessing, found.frozen, **told)
    receipts = [prove(TARGETS[name], subject, out_dir / name, batchnorm, python) for name in names]
    return Records(receipts, COLUMNS)


def export_timm_folder(
    model: nn.Module,
    arguments: dict,
    preprocessing: Preprocessing | Mapping,
    out_dir: str | Path,
    batches: Iterable[Tensor] | None = None,
    source: str = "",
    license: str = "",
    calibrated: bool = False,
) -> dict:
    """Writes the timm target, or that for a network of the user's own, into `out_dir`, once it is proven; returns the
    receipt.

    Args:
        model: a timm model with num_classes=0, on any device.
        arguments: "name", "model_args" (what rebuilds it beyond name and num_classes=0), "frozen" (parameter names).
        preprocessing: the record, or a dictionary such as its `to_dict` gives and `load_encoder` returns.
        batches: normalised float images (B, C, H, W): the model's BatchNorm is calibrated on them, and stays so.
        source: for the receipt.
        license: of the weights, as model hubs spell it; "": none was chosen, and the card says so.
        calibrated: the statistics that `model` comes with are those of whole images.

    Raises:
        ExportError: timm does not load it, or computes something else; `out_dir` is then left as it was.
    """
    batchnorm = _calibrate(model, batches, calibrated)
    told = {"source": source, "trained": tell_training(source), "license": license}
    subject = _subject(model, arguments, Preprocessing.of(preprocessing), **told)
    target = TARGETS["network" if isinstance(model, OwnNetwork) else "timm"]
    return prove(target, subject, Path(out_dir), batchnorm)


def check_possible(model: nn.Module, arguments: dict, preprocessing: Preprocessing, names: list[str]) -> None:
    """Raises ValueError, with every reason, where one of the targets cannot take this model. Arguments as in
    `export_timm_folder`.
    """
    possible(_subject(model, arguments, preprocessing), names)


def prove_further(
    model: nn.Module, arguments: dict, preprocessing: Preprocessing, names: list[str], out_dir: Path, place: Path
) -> list[dict]:
    """Writes a model for each target, as it is, into folders below `out_dir`; returns their receipts, or {"target",
    "problem"} for one that failed.

    Args:
        arguments: as in `export_timm_folder`, with its "source" and what its receipt says of "batchnorm".
        names: of targets; "all" for every one but timm's that can take the model.
        place: as in `prove`.
    """
    if not names:
        return []
    source = arguments["source"]
    still = copy.deepcopy(model).cpu().eval()  # a target may run it, and running statistics must stay
    subject = _subject(still, arguments, preprocessing, source=source, trained=tell_training(source))
    done: list[dict] = []
    for name in [name for name in possible(subject, names) if name not in ("timm", "network")]:
        try:
            done.append(prove(TARGETS[name], subject, out_dir / name, arguments["batchnorm"], place=place))
        except (ExportError, ValueError, ImportError) as error:
            done.append({"target": name, "problem": str(error)})
    return done


def _subject(model: nn.Module, arguments: dict, preprocessing: Preprocessing, **told: str) -> Subject:
    """A model as targets get it. Arguments as in `export_timm_folder`; told: source, trained and license."""
    return Subject(model, arguments["model_args"], preprocessing, list(arguments.get("frozen", [])), **told)


def prove(
    target: Target,
    subject: Subject,
    out_dir: Path,
    batchnorm: dict,
    python: str = sys.executable,
    place: Path | None = None,
) -> dict:
    """One folder, written under another name, checked in a fresh process, then moved; returns its receipt, without what
    only `verify` needs.

    Args:
        place: folder where it is written first, on the disk of `out_dir`; None: beside it. A run's own folder is
            cleaned of what a killed process left there when the run goes on.
    """
    refuse_linked_folders(out_dir)
    with telling_full_disk(out_dir, "nothing was exported to it; make room, and export again"):
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        delete_staging(out_dir.parent, _SLOWEST)
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=place or out_dir.parent))
        try:
            staging.chmod(0o777 & ~_umask())  # mkdtemp keeps it to its owner
            return _proven(target, subject, staging, out_dir, batchnorm, python)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _proven(
    target: Target, subject: Subject, staging: Path, out_dir: Path, batchnorm: dict, python: str
) -> dict[str, Any]:
    """Writes into `staging`, checks what is there and moves it to `out_dir`; returns the receipt as `prove` does."""
    written = target.write(subject, staging)
    _write_reference(subject, written, staging / "reference.npz")
    proof = {"check": _request(subject, written), "tensors": state_tensors(written.tensors)}
    own = subject.name  # the caller's own network, which is loaded already
    facts = facts_of(target.name, subject.name, written.details, proof["check"], staging, own)
    lines = target.lines(facts)
    write_card(target, subject, written, lines, batchnorm, staging / "README.md")
    compare_page(target, facts, staging)
    outcome = recheck(staging, proof, lines, python)
    if problem := outcome.pop("problem"):
        raise ExportError(f"{target.name} does not get back the {subject.name} that was exported: {problem}.")
    receipt = {
        "target": target.name,
        "source": published(subject.source),
        "architecture": subject.name,
        "tolerance": TOLERANCE,
        **outcome,
        "frozen": subject.frozen,
        "batchnorm": batchnorm,
        **written.details,
        "written": now(),
        "sha256": hash_files(staging),
        "tensors_sha256": hash_tensors(written.tensors),
        **proof,
    }
    write_json(staging / "receipt.json", receipt)
    move_into(staging, out_dir)
    return {"folder": str(out_dir)} | {key: value for key, value in receipt.items() if key not in proof}


def _request(subject: Subject, written: Written) -> dict:
    """The request to check.py, besides the folder and the tensors."""
    return {
        "packages": list(written.packages),
        "weights": written.weights,
        "file_prefix": written.file_prefix,
        "model_prefix": written.model_prefix,
        "left_random": list(written.left_random),
        "preprocessing": subject.preprocessing.to_dict(),
        "tolerance": TOLERANCE,
        "contract": written.contract,
    }


def _write_reference(subject: Subject, written: Written, path: Path) -> None:
    """The fixed images and what the encoder makes of them, for whoever loads the export."""
    tensors = {key: tensor for name, value in written.expected.items() for key, tensor in flatten(name, value).items()}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ExportError("the features of the encoder are not finite: it has diverged and is not exported.")
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in {"images": subject.images, **tensors}.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def move_into(staging: Path, out_dir: Path) -> None:
    """Moves what is proven to where it belongs; files of others that lie there already stay.

    Raises:
        ValueError: the folder, or one in it, is a link.
    """
    refuse_linked_folders(out_dir)
    if not out_dir.exists():
        os.replace(staging, out_dir)
        return
    (out_dir / "receipt.json").unlink(missing_ok=True)  # an old receipt must not vouch for new files
    paths = sorted(path for path in staging.rglob("*") if path.is_file())
    for path in sorted(paths, key=lambda path: path.name == "receipt.json"):
        (out_dir / path.relative_to(staging)).parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, out_dir / path.relative_to(staging))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _beside(source: Path, found: loading.Source) -> Path:
    if found.path is None:
        raise ValueError(f"{source} is a name, so there is no folder to write beside: give out_dir.")
    place = found.given or source  # NAME:PATH is no path
    return (place if place.is_dir() else place.parent) / "export"


def _calibrate(model: nn.Module, batches: Iterable[Tensor] | None, calibrated: bool) -> dict:
    """What was done to BatchNorm's running statistics, or why nothing was; "clean": they are those of whole images."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return {"recalibrated": False, "why": "the model has no BatchNorm"}
    if batches is None:
        return {"recalibrated": False, "why": "no images were given", "clean": calibrated}
    images = calibrate_batchnorm(model, batches)
    if not images:
        return {"recalibrated": False, "why": "one image is too few", "clean": calibrated}
    return {"recalibrated": True, "images": images}

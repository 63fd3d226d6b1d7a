"""From a source to a folder that a target loads; no folder without a receipt, no receipt without the proof."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from a2mim import loading
from a2mim.batchnorm import calibrate_batchnorm
from a2mim.export.receipt import TOLERANCE, ExportError, check_in_fresh_process, describe, write_json
from a2mim.export.reference import write_reference
from a2mim.export.timm_folder import write_timm_folder

TARGETS = ("timm",)


def export(
    source: str | Path,
    to: Iterable[str] = ("timm",),
    out_dir: str | Path | None = None,
    batches: Iterable[Tensor] | None = None,
) -> list[dict]:
    """Writes one folder a target below `out_dir`; returns their receipts, each with its "folder".

    Args:
        source: what `load_encoder` takes: a run folder, a checkpoint, an exported folder, a timm name (random weights).
        to: names from TARGETS.
        out_dir: where the folders go; None: "export" in the run folder, or beside what the source is.
        batches: normalised float images (B, C, H, W) to calibrate BatchNorm on; None leaves its statistics alone.

    Raises:
        ExportError: what was loaded back is not what was exported; nothing is left in the folder then.
        ValueError, FileNotFoundError: an unknown target, or a source that cannot be loaded.
    """
    targets = [to] if isinstance(to, str) else list(to)
    check_targets(targets)
    found = loading.read_source(source)
    model, preprocessing = loading.build(found)
    arguments = {"name": found.name, "model_args": found.model_args, "frozen": found.frozen}
    out_dir = Path(out_dir) if out_dir is not None else _beside(Path(source), found)
    return [
        export_timm_folder(
            model, arguments, preprocessing, out_dir / target, batches, str(source), calibrated=found.calibrated
        )
        for target in targets
    ]


def check_targets(targets: list[str]) -> None:
    """Raises ValueError for names that are no target, or for none at all."""
    if not targets or set(targets) - set(TARGETS):
        raise ValueError(f"export to {targets} was asked for: choose from {', '.join(TARGETS)}.")


def _beside(source: Path, found: loading.Source) -> Path:
    if found.path is None:
        raise ValueError(f"{source} is a name, so there is no folder to write beside: give out_dir.")
    return (source if source.is_dir() else source.parent) / "export"


def export_timm_folder(
    model: nn.Module,
    arguments: dict,
    preprocessing: dict,
    out_dir: str | Path,
    batches: Iterable[Tensor] | None = None,
    source: str = "",
    license: str = "apache-2.0",
    calibrated: bool = False,
) -> dict:
    """Writes config.json, model.safetensors and receipt.json into `out_dir`, once they are proven; returns the receipt.

    Args:
        model: a timm model with num_classes=0, on any device.
        arguments: "name", "model_args" (what rebuilds it beyond name and num_classes=0), "frozen" (parameter names).
        preprocessing: "mean", "std" (per channel, in units of 0..1), "img_size" [H, W], "interpolation".
        batches: normalised float images (B, C, H, W): the model's BatchNorm is calibrated on them, and stays so.
        source: for the receipt.
        license: of the weights, as model hubs spell it.
        calibrated: the statistics that `model` comes with are those of whole images.

    Raises:
        ExportError: timm does not load it, or computes something else; `out_dir` is then left as it was.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    batchnorm = _calibrate(model, batches, calibrated)
    staging = Path(tempfile.mkdtemp(prefix=".export-", dir=out_dir))
    try:
        config = write_timm_folder(model, arguments, preprocessing, staging, license)
        reference = staging / "reference.safetensors"
        write_reference(model, config["pretrained_cfg"]["input_size"], reference)
        outcome = check_in_fresh_process(staging, reference)
        if problem := outcome.pop("problem"):
            raise ExportError(f"timm does not get back the {config['architecture']} that was exported: {problem}.")
        receipt = {
            "target": "timm",
            "folder": str(out_dir),
            "source": source,
            "architecture": config["architecture"],
            "tolerance": TOLERANCE,
            **outcome,
            "frozen": list(arguments.get("frozen", [])),
            "batchnorm": batchnorm,
            **describe(staging, ("config.json", "model.safetensors")),
        }
        (out_dir / "receipt.json").unlink(missing_ok=True)  # an old receipt must not vouch for new files
        for name in ("config.json", "model.safetensors"):
            os.replace(staging / name, out_dir / name)
        write_json(out_dir / "receipt.json", receipt)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return receipt


def _calibrate(model: nn.Module, batches: Iterable[Tensor] | None, calibrated: bool) -> dict:
    """What was done to BatchNorm's running statistics, or why nothing was; "clean": they are those of whole images."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return {"recalibrated": False, "why": "the model has no BatchNorm"}
    if batches is None:
        return {"recalibrated": False, "why": "no images were given", "clean": calibrated}
    return {"recalibrated": True, "images": calibrate_batchnorm(model, batches)}

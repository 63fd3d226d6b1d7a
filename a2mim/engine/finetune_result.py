"""What fine-tuning leaves: a result that says what decided it, and the classifier and its encoder as timm folders."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from a2mim.data.crops import height_and_width
from a2mim.engine.finetune_protocol import protocol_in_force
from a2mim.evaluation.identity import hash_of
from a2mim.evaluation.results import pack
from a2mim.export import export_timm_folder
from a2mim.export.exporting import move_into
from a2mim.export.receipt import TOLERANCE
from a2mim.export.target import ExportError
from a2mim.files import STAGING, write_bytes, write_json
from a2mim.pixels import Preprocessing
from a2mim.protocols.intervals import bootstrap_interval
from a2mim.wiring.model_type import TimmModel
from a2mim.wiring.timm_models import as_timm_reads


def result_of(task) -> dict:
    """For results.json: the numbers, every constant behind them, and the answer to every test image."""
    settings, judge = task.settings, task.judge
    protocol = protocol_in_force(settings)
    best = max(judge.history, key=lambda line: line["test_top1"])
    answers = judge.correct
    constants = protocol.constants if protocol else settings.model_dump(mode="json", exclude={"laptop", "processes"})
    return {
        "protocol": protocol.title if protocol else task.request.name,
        "protocol_hash": protocol.hash if protocol else hash_of(constants),
        "overridden": protocol.overridden if protocol else {},
        "constants": constants,
        "settings": settings.model_dump(mode="json"),
        "encoder": str(task.request.source),
        "encoder_hash": task.source_hash,
        "data": task.train_set.describe(),
        "test_data": task.test_set.describe(),
        "data_fingerprint": hash_of([task.train_set.fingerprint, task.test_set.fingerprint]),
        "test_fingerprint": task.test_set.fingerprint,
        "top1_last": judge.last["test_top1"],
        "top5_last": judge.last["test_top5"],
        "top1_best": best["test_top1"],
        "best_epoch": best["epoch"],
        "interval": list(bootstrap_interval(answers[answers >= 0] == 1)),
        "n_train": len(task.train_set),
        "n_test": int((answers >= 0).sum()),
        "unreadable": dict(judge.loader.faults.unreadable),
        "seed": settings.seed,
        "start": task.start,
        "history": judge.history,
        "correct": pack(answers),
    }


def hand_over_classifier(task, model: nn.Module, folder: Path) -> dict:
    """encoder/ with its receipt, and classifier/, which timm loads whole. Returns their entry in summary.json."""
    model = copy.deepcopy(model).cpu().eval()
    data, arguments = task.settings.data, task.arguments
    pixels = Preprocessing(data.mean, data.std, height_and_width(data.img_size), data.interpolation, data.crop_pct)
    encoder: TimmModel = copy.deepcopy(model)
    encoder.reset_classifier(0)
    receipt = export_timm_folder(encoder, arguments, pixels, folder / "encoder", source=str(folder), calibrated=True)
    written = write_classifier(model, folder / "encoder", folder / "classifier", task.whole.class_names)
    return {"export": receipt, "classifier_folder": str(folder / "classifier"), "classifier_check": written}


def write_classifier(model: nn.Module, encoder: Path, folder: Path, class_names) -> dict:
    """config.json and model.safetensors of the whole model, loaded back by timm and compared.

    Raises:
        ExportError: timm computes other logits from the folder than the model does; nothing claims then that it does.
    """
    config = json.loads((encoder / "config.json").read_text(encoding="utf-8"))
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = model.num_classes
    if class_names:
        config["label_names"] = list(class_names)
    with tempfile.TemporaryDirectory(prefix=STAGING, dir=folder.parent) as place:
        staging = Path(place, "classifier")  # its parent belongs to its owner alone
        staging.mkdir()
        receipt = _write_proven(model, config, staging, folder)
        move_into(staging, folder)
    return receipt


def _write_proven(model: nn.Module, config: dict, staging: Path, folder: Path) -> dict:
    """Writes the classifier into `staging`; returns its receipt. folder: where it will be, for the message."""
    tensors = {key: value.detach().contiguous().clone() for key, value in model.state_dict().items()}
    write_bytes(staging / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_json(staging / "config.json", config)
    loaded = as_timm_reads(staging).eval()
    shape = config["pretrained_cfg"]["input_size"]
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, loaded_logits = model(images), loaded(images)
    difference = ((loaded_logits - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
    if not difference <= TOLERANCE:
        raise ExportError(f"timm does not get back the classifier for {folder}: its logits differ by {difference:.1e}")
    receipt = {"target": "timm", "num_classes": model.num_classes, "largest_difference": difference}
    receipt |= {"tolerance": TOLERANCE, "tensors": len(tensors), "checked": "in the same process, by its logits"}
    write_json(staging / "receipt.json", receipt)
    return receipt

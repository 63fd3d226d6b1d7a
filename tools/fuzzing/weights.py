"""Checkpoints, weights and exports."""

import io
import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from a2mim.checkpoints import FORMAT, read_newest
from a2mim.encoder import MaskedEncoder
from a2mim.export import TARGETS, exporting
from a2mim.export.contracts import check_contract
from a2mim.export.receipt import hash_files
from a2mim.export.target import Subject as Exported
from a2mim.export.verify import lines_of, read_receipt
from a2mim.files import write_json
from a2mim.pixels import Preprocessing
from a2mim.weights.loading import load_encoder
from fuzzing.damage import Damage, flipped, in_checkpoint, in_json, one_bit, one_of, other_value
from fuzzing.guard import Subject

SIZE, NETWORK = 32, "test_vit"
PIXELS = {"mean": [0.5] * 3, "std": [0.2] * 3, "img_size": [SIZE, SIZE]}


def encoder() -> MaskedEncoder:
    torch.manual_seed(0)
    return MaskedEncoder(NETWORK, img_size=SIZE, model_args={"depth": 1})


def same(one: Any, other: Any) -> bool:
    """Whether two values that a file holds are equal, tensors included."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def write_checkpoint(path: Path) -> None:
    made = encoder()
    meta = {"encoder": made.arguments(), "pixels": PIXELS, "step": 1, "settings": "{}", "request": "{}"}
    state = {f"encoder.model.{key}": value for key, value in made.model.state_dict().items()}
    torch.save({"format": FORMAT, "state_dict": state, "meta": meta}, path)


def checkpoint(folder: Path) -> Subject:
    """Its checksums cover every byte: it is refused, or gives what was saved."""
    path = folder / "step_000001.pth"
    write_checkpoint(path)
    whole, (model, pixels) = read_newest(folder), load_encoder(path)
    state = model.state_dict()

    def read() -> None:
        assert same(whole, read_newest(folder)), "another checkpoint"
        loaded, shown = load_encoder(path)
        assert same(state, loaded.state_dict()) and same(pixels, shown), "another encoder"

    return Subject([path], read, {path: one_of(flipped, one_bit, one_bit)})


def checkpoint_values(folder: Path) -> Subject:
    """Right checksums, and other values: a stranger's checkpoint."""
    path = folder / "step_000001.pth"
    write_checkpoint(path)
    return Subject([path], lambda: load_encoder(path), {path: in_checkpoint})


def written(target: str, folder: Path) -> Path:
    """An exported folder, whole but for its check in a fresh process."""
    resnet = target in ("detectron2", "ultralytics")  # which take nothing smaller
    made = (MaskedEncoder("resnet18", img_size=SIZE) if resnet else encoder()).model.eval()
    arguments = {} if resnet else {"depth": 1, "img_size": SIZE}
    subject = Exported(made, arguments, Preprocessing.of(PIXELS), [], "somewhere", "", "")
    before, exporting.recheck = exporting.recheck, lambda *_: {"problem": "", "mode": "loaded"}
    try:
        exporting.prove(TARGETS[target], subject, folder / target, {"recalibrated": False, "why": "a fuzzer"})
    finally:
        exporting.recheck = before
    return folder / target


def export(folder: Path) -> Subject:
    """The receipt's hashes cover the configuration and the weights."""
    place = written("timm", folder)
    model, pixels = load_encoder(place)
    state = model.state_dict()

    def read() -> None:
        loaded, shown = load_encoder(place)
        assert same(state, loaded.state_dict()) and same(pixels, shown), "another encoder"

    files = [place / "model.safetensors", place / "config.json"]
    json_damage: Damage = one_of(flipped, in_json, one_bit)
    return Subject(files, read, {files[0]: one_of(flipped, one_bit), files[1]: json_damage})


def strangers_export(target: str, folder: Path) -> Subject:
    """Any file is another one, and the receipt fits it: as a stranger would write it."""
    place = written(target, folder)
    for path in place.glob("encoder.p[kt]*"):  # 45 MB, which only the check in a fresh process reads
        path.write_bytes(b"weights")
    files = sorted(path for path in place.iterdir() if path.suffix in (".json", ".py", ".yaml", ".md"))
    files += [*place.glob("*.safetensors"), place / "reference.npz"]
    receipt = (place / "receipt.json").read_bytes()
    digests = hash_files(place)

    def read() -> None:
        found = hash_files(place)
        if found != digests and (place / "receipt.json").read_bytes() == receipt:
            write_json(place / "receipt.json", json.loads(receipt) | {"sha256": found})
        stated = read_receipt(place)
        lines_of(place, stated)
        check_contract(stated["check"]["contract"], stated["tensors"])
        if target == "timm":
            load_encoder(place)

    return Subject(files, read, {path: one_of(flipped, in_json, in_json) for path in files if path.suffix == ".json"})


def safetensors(folder: Path) -> Subject:
    """Weights alone, of which only the user says what they are."""
    path = folder / "weights.safetensors"
    save_file(MaskedEncoder(NETWORK).model.state_dict(), path, metadata={"format": "pt", "architecture": '"test_vit"'})
    return Subject([path], lambda: load_encoder(f"{NETWORK}:{path}"), {path: _in_header})


def _in_header(content: bytes, draw: random.Random) -> bytes:
    """Another value in the header, whose length then fits, or bytes anywhere."""
    if draw.random() < 0.3:
        return flipped(content, draw)
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(other_value(json.loads(content[8 : 8 + length]), draw)).encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def pickled(old: bool, folder: Path) -> Subject:
    """A file of torch.save from elsewhere, in its format of today or of old."""
    path = folder / "weights.pth"
    content = {"state_dict": MaskedEncoder(NETWORK).model.state_dict(), "epoch": 3, "args": {"lr": 0.1}}
    torch.save(content, path, _use_new_zipfile_serialization=not old)

    def values(content: bytes, draw: random.Random) -> bytes:
        changed = other_value(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), draw)
        buffer = io.BytesIO()
        torch.save(changed, buffer, _use_new_zipfile_serialization=not old)
        return buffer.getvalue()

    return Subject([path], lambda: load_encoder(f"{NETWORK}:{path}"), {path: one_of(flipped, values)})


def hub_folder(folder: Path) -> Subject:
    """A folder of transformers: its config.json, and its weights under either name."""
    place = folder / "hub"
    place.mkdir()
    exported = written("transformers", folder)
    shutil.copy(exported / "config.json", place)
    config = place / "config.json"
    tensors = load_file(exported / "model.safetensors")
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    damage: dict[Path, Damage] = {config: one_of(flipped, in_json, in_json), place / "model.safetensors": _in_header}
    return Subject([config, place / "model.safetensors"], lambda: load_encoder(place), damage)


KINDS: dict[str, Callable[[Path], Subject]] = {
    "checkpoint": checkpoint,
    "checkpoint-values": checkpoint_values,
    "export": export,
    **{
        f"export-{target}": partial(strangers_export, target)
        for target in ("timm", "transformers", "safetensors", "detectron2", "ultralytics", "mmpretrain")
    },
    "safetensors": safetensors,
    "weights": partial(pickled, False),
    "weights-old": partial(pickled, True),
    "hub-folder": hub_folder,
}

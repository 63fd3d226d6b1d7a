"""Damages files of every kind that a2mim reads, and fails where a reader ends in anything but its own short error.

python tools/fuzz.py --seconds 3600 [--kind tar] [--seed 0]
"""

import argparse
import io
import json
import random
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a checkout runs without being installed

from a2mim.checkpoints import FORMAT
from a2mim.data import Access, EvalLoader, open_dataset
from a2mim.encoder import MaskedEncoder
from a2mim.export import export_timm_folder
from a2mim.export.card import tell_training
from a2mim.export.verify import lines_of, read_receipt
from a2mim.weights.loading import load_encoder

SIZE = 32
ALLOWED = (ValueError, OSError)  # what the command line shows as one sentence
WORDS = [
    b"\x00" * 8,
    b"\xff" * 8,
    b"-1",
    b"1e400",
    b"9" * 40,
    b'{"type": "os.system"}',
    b"[" * 2000,
    b"../..",
    b"\n",
    b'"',
]


def damage(content: bytes, draw: random.Random) -> bytes:
    """Flips, cuts, repeats, inserts or overwrites a few parts."""
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at = draw.randrange(len(content) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del content[at : at + draw.choice((1, 16, 512, len(content)))]
        elif kind == 2:
            content[at:at] = content[at : at + draw.choice((1, 64, 512))]
        elif kind == 3:
            content[at:at] = draw.choice(WORDS)
        else:
            word = draw.choice(WORDS)
            content[at : at + len(word)] = word
    return bytes(content)


def make_checkpoint(folder: Path) -> tuple[list[Path], Callable[[], object]]:
    encoder = MaskedEncoder("resnet10t", img_size=SIZE)
    meta = {"encoder": encoder.arguments(), "pixels": {"mean": [0.5] * 3, "std": [0.2] * 3}}
    state = {f"encoder.model.{key}": value for key, value in encoder.model.state_dict().items()}
    path = folder / "step_000001.pth"
    torch.save({"format": FORMAT, "state_dict": state, "meta": meta}, path)
    return [path], lambda: load_encoder(path)


def make_json(folder: Path) -> tuple[list[Path], Callable[[], object]]:
    encoder = MaskedEncoder("resnet10t", img_size=SIZE)
    pixels = {"mean": [0.5] * 3, "std": [0.2] * 3, "img_size": [SIZE, SIZE]}
    run = folder / "encoder"
    export_timm_folder(encoder.model, encoder.arguments(), pixels, run)
    (folder / "summary.json").write_text(json.dumps({"asked": {"config": "a.py", "data": "x"}, "steps": 3}))

    def read() -> None:
        lines_of(run, read_receipt(run))
        assert tell_training(folder).isprintable()
        load_encoder(run)

    return [run / "config.json", run / "receipt.json", folder / "summary.json"], read


def make_images(folder: Path) -> tuple[list[Path], Callable[[], object]]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    paths = []
    for number, (suffix, kind) in enumerate((("jpg", "JPEG"), ("png", "PNG"), ("tif", "TIFF"), ("webp", "WEBP"))):
        for copy in range(2):
            path = folder / "images" / "ab"[copy] / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, kind)
            paths.append(path)
    np.save(folder / "images" / "a" / "9.npy", pixels)
    return [*paths, folder / "images" / "a" / "9.npy"], lambda: _read_all(folder / "images")


def make_tar(folder: Path) -> tuple[list[Path], Callable[[], object]]:
    path = folder / "train-0000.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(6):
            file = io.BytesIO()
            Image.new("RGB", (40, 40), (number * 40, 10, 200)).save(file, "JPEG")
            for name, content in ((f"{number:04}.jpg", file.getvalue()), (f"{number:04}.cls", b"1")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return [path], lambda: _read_all(path)


def make_index(folder: Path) -> tuple[list[Path], Callable[[], object]]:
    """A damaged index never changes what is read: it is rebuilt."""
    (shard,), _ = make_tar(folder)
    before = [image.tobytes() for image in _images(shard)]
    index = sorted(folder.rglob("*.npz"))  # beside the shard
    assert index, "no index was written"

    def read() -> None:
        assert [image.tobytes() for image in _images(shard)] == before, "another index gave other images"

    return index, read


KINDS = {"checkpoint": make_checkpoint, "json": make_json, "image": make_images, "tar": make_tar, "index": make_index}


def _images(source: Path) -> list[np.ndarray]:
    dataset = open_dataset(str(source), "train", access=Access(processes=1))
    loader = EvalLoader(dataset, SIZE, resize=None, batch_size=4)
    return [image for batch in loader for image in batch["images"].numpy()]


def _read_all(source: Path) -> None:
    _images(source)


def fuzz(kind: str, folder: Path, seconds: float, seed: int = 0, rounds: int | None = None) -> dict[str, int]:
    """Counts by outcome: "read", or the name of the error.

    Raises:
        AssertionError: a reader ended in another way; the message names the kind, the seed and the round.
    """
    draw = random.Random(f"{seed} {kind}")
    paths, read = KINDS[kind](folder)
    read()  # the whole files are right
    originals = {path: path.read_bytes() for path in paths}
    counts: dict[str, int] = {}
    end, number = time.monotonic() + seconds, 0
    while paths and time.monotonic() < end and (rounds is None or number < rounds):
        number += 1
        path = draw.choice(paths)
        path.write_bytes(damage(originals[path], draw))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
            outcome = "read"
        except ALLOWED as error:
            outcome = type(error).__name__
            assert len(str(error)) < 2000, f"{kind}, seed {seed}, round {number}: an error of {len(str(error))} letters"
        except Exception as error:
            kept = folder / f"failed-{kind}-{seed}-{number}"
            kept.write_bytes(path.read_bytes())
            raise AssertionError(
                f"{kind}, seed {seed}, round {number}, {path.name}: {type(error).__name__}: {error}"
            ) from error
        counts[outcome] = counts.get(outcome, 0) + 1
        path.write_bytes(originals[path])
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for all kinds together")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    failed = 0
    kinds = chosen.kind or list(KINDS)
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(kind, fuzz(kind, Path(folder), chosen.seconds / len(kinds), chosen.seed), flush=True)
            except AssertionError as error:
                print(f"FAILED {error}", flush=True)
                failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())

"""Copy detection on Copydays: distorted photographs find their originals by the cosine of global descriptors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from a2mim.evaluation.calibration import IMAGES
from a2mim.evaluation.dense import DenseEncoder, pictures_in, read_picture, resized
from a2mim.evaluation.identity import hash_of
from a2mim.protocols import Protocol
from a2mim.protocols.intervals import bootstrap_mean
from a2mim.text import ProgressBar

_SCENE = 4  # first characters of a file's name: the photograph it is made from


def run(source, protocol: Protocol, data, device=None, allow_partial=False, seed=0, batch_size=64, **_) -> dict:
    """Mean average precision of the `strong` copies, in percent; of every other block too.

    Args:
        data: the Copydays folder: original/, and blocks of copies: strong/, jpegqual/N/, crops/N/. Photographs in
            distractors/ are searched too; from those in whitening/ a whitening is learned.

    Source: https://github.com/facebookresearch/dino, eval_copy_detection.py.
    """
    c, root = protocol.constants, Path(data)
    originals, blocks = find_blocks(root)
    size = (c["img_size"], c["img_size"])
    encoder = DenseEncoder(source, size, device, allow_partial, seed)
    calibrated = encoder.calibrate(originals, lambda path: _read(path, c), np.zeros(len(originals)), IMAGES)

    def describe(paths: list[Path], what: str) -> Tensor:
        shown = ProgressBar(_batches(paths, c, batch_size), desc=what, leave=False, unit="batch")
        return torch.cat([descriptors(*encoder(batch), c["gem_power"], c["with_class_token"]).cpu() for batch in shown])

    distractors, learn = pictures_in(root / "distractors"), pictures_in(root / "whitening")
    bank = describe([*originals, *distractors], "originals")
    whiten = whitening(describe(learn, "whitening"), c["whitening_power"]) if learn else lambda x: x
    bank = F.normalize(whiten(bank), dim=1)
    precision = {}
    for name, paths in blocks.items():
        queries = F.normalize(whiten(describe(paths, name)), dim=1)
        found = (queries @ bank.T).topk(min(c["retrieved"], len(bank)), dim=1).indices.tolist()
        precision[name] = [
            average_precision([rank for rank, i in enumerate(line) if i in rights], len(rights))
            for line, rights in zip(found, [_rights(path, originals) for path in paths], strict=True)
        ]
    headline = ["strong"] if "strong" in blocks else list(blocks)
    scores = {p.stem: 100 * s for name in headline for p, s in zip(blocks[name], precision[name], strict=True)}
    if len(headline) > 1:
        scores = {f"{n}/{p.stem}": 100 * s for n in headline for p, s in zip(blocks[n], precision[n], strict=True)}
    values = np.array(list(scores.values()))
    return {
        "protocol": protocol.name,
        "protocol_hash": protocol.hash,
        "overridden": protocol.overridden,
        "constants": c,
        "sources": list(protocol.sources),
        "metric": f"mAP ({headline[0] if len(headline) == 1 else 'all blocks'})",
        "top1_last": float(values.mean()),
        "top1_best": None,
        "blocks": {name: 100 * float(np.mean(values)) for name, values in precision.items()},
        "interval": list(bootstrap_mean(values)),
        "scores": scores,
        "correct": "",
        "n_test": len(values),
        "n_distractors": len(distractors),
        "whitened_on": len(learn),
        "encoder": str(source),
        "encoder_hash": encoder.encoder.hash,
        "loading": encoder.encoder.loading,
        "loaded": encoder.encoder.loaded,
        "data": str(data),
        "data_fingerprint": hash_of([[p.name for p in (*originals, *distractors, *learn)], sorted(scores)]),
        "batchnorm_calibrated_on": calibrated,
    }


def find_blocks(root: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """(originals, {block: copies}); an error names what a Copydays folder must hold."""
    originals = pictures_in(root / "original")
    folders = [root / "strong"]
    folders += [
        path for kind in ("jpegqual", "crops") for path in sorted((root / kind).glob("*"), key=_number) if path.is_dir()
    ]
    blocks = {path.relative_to(root).as_posix(): pictures_in(path) for path in folders}
    blocks = {name: paths for name, paths in blocks.items() if paths}
    if not originals or not blocks:
        raise FileNotFoundError(
            f"{root} is no Copydays folder: it must hold original/*.jpg and copies in strong/, jpegqual/N/ or crops/N/."
        )
    for paths in blocks.values():
        for path in paths:
            if not _rights(path, originals):
                raise ValueError(f"{path} has no original: no file in original/ begins with {path.name[:_SCENE]}.")
    return originals, blocks


def descriptors(maps: Tensor, tokens: Tensor | None, power: float, with_token: bool) -> Tensor:
    """Maps (B, D, h, w) -> (B, D): generalised mean over the cells; after the class token (B, D) where there is one."""
    pooled = maps.clamp(min=1e-6).pow(power).mean(dim=(2, 3)).pow(1 / power)
    return torch.cat([tokens, pooled], dim=1) if with_token and tokens is not None else pooled


def whitening(features: Tensor, power: float):
    """The map x -> (x - mean) in the axes of the covariance, each divided by its variance to the `power`."""
    mean = features.double().mean(dim=0)
    # as in the original: the second moment of the photographs, not their covariance
    variances, axes = torch.linalg.eigh(features.double().T @ features.double() / len(features))
    scale = variances.clamp(min=1e-5 * variances.max()) ** -power
    return lambda x: ((x.double() - mean) @ axes * scale).float()


def average_precision(ranks: list[int], n_right: int) -> float:
    """Area under precision and recall, by trapezoids, as in the Holidays benchmark.

    Args:
        ranks: of the right answers among what was retrieved, from 0, ascending.
    """
    area = 0.0
    for found, rank in enumerate(ranks):
        before = found / rank if rank else 1.0
        area += (before + (found + 1) / (rank + 1)) / (2 * n_right)
    return area


def _rights(path: Path, originals: list[Path]) -> list[int]:
    return [i for i, original in enumerate(originals) if original.name[:_SCENE] == path.name[:_SCENE]]


def _batches(paths: list[Path], c: dict, batch_size: int):
    """uint8 (B, 3, S, S), squeezed to a square."""
    for start in range(0, len(paths), batch_size):
        yield torch.stack([_read(path, c) for path in paths[start : start + batch_size]])


def _read(path: Path, c: dict) -> Tensor:
    """(3, S, S) uint8."""
    return resized(read_picture(path), (c["img_size"], c["img_size"]), c["interpolation"])


def _number(path: Path) -> tuple:
    return (int(path.name), "") if path.name.isdigit() else (0, path.name)

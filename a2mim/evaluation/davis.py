"""Video object segmentation on DAVIS-2017: labels of the first frame, carried on by the similarity of features.

Nothing is trained. Each cell of a frame takes the labels of the most similar cells near it in the first frame and in a
few frames before.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from a2mim.evaluation.dense import DenseEncoder, pictures_in, read_picture, resized
from a2mim.evaluation.identity import hash_of
from a2mim.files import read_text
from a2mim.protocols import Protocol
from a2mim.protocols.intervals import bootstrap_mean
from a2mim.text import ProgressBar

_BLOCK_BYTES = 2**28  # of affinities held at once
CALIBRATION_FRAMES = 64


def run(source, protocol: Protocol, data, device=None, allow_partial=False, seed=0, **_) -> dict:
    """The mean of J and F over all objects, in percent, with a bootstrap interval over objects.

    Args:
        data: the DAVIS-2017 folder: JPEGImages/480p/NAME/*.jpg, Annotations/480p/NAME/*.png and, to choose among
            them, ImageSets/2017/val.txt.

    Source: https://github.com/facebookresearch/dino, eval_video_segmentation.py, and davis2017-evaluation; differs in
    resizing with antialiasing and in normalising by the encoder's own mean and deviation.
    """
    c, root = protocol.constants, Path(data)
    names = sequences(root)
    encoders, scores, calibrated = {}, {}, 0
    for name in ProgressBar(names, desc="videos", unit="video", leave=False):
        frames = pictures_in(root / "JPEGImages" / "480p" / name)
        size = working_size(read_picture(frames[0]).shape[:2], c["short_side"], c["long_side_multiple"])
        if size not in encoders:
            encoders[size] = DenseEncoder(source, size, device, allow_partial, seed)
            calibrated += _calibrate(encoders[size], root, names, size)
        truth = [labels_of(root / "Annotations" / "480p" / name / f"{frame.stem}.png") for frame in frames]
        colours = objects_of(truth[0])
        if not len(colours):
            raise ValueError(f"the first annotation of {name} has no object: every pixel is background (black).")
        found = carry_on(encoders[size], frames, numbered(truth[0], colours), size, c)
        for number, object_scores in judge(found, [numbered(t, colours) for t in truth], c["boundary"]).items():
            scores[f"{name}/{number}"] = object_scores
    j, f = np.array(list(scores.values())).T * 100
    both = (j + f) / 2
    encoder = next(iter(encoders.values())).encoder
    return {
        "protocol": protocol.name,
        "protocol_hash": protocol.hash,
        "overridden": protocol.overridden,
        "constants": c,
        "sources": list(protocol.sources),
        "metric": "J&F",
        "top1_last": float(both.mean()),
        "top1_best": None,
        "J": float(j.mean()),
        "F": float(f.mean()),
        "interval": list(bootstrap_mean(both)),
        "scores": dict(zip(scores, map(float, both), strict=True)),
        "correct": "",
        "n_test": len(both),
        "n_videos": len(names),
        "encoder": str(source),
        "encoder_hash": encoder.hash,
        "loading": encoder.loading,
        "loaded": encoder.loaded,
        "data": str(data),
        "data_fingerprint": hash_of(sorted(scores)),
        "stride": next(iter(encoders.values())).stride,
        "batchnorm_calibrated_on": calibrated,
    }


def sequences(root: Path) -> list[str]:
    """Names of the videos; FileNotFoundError naming what a DAVIS folder must hold."""
    frames, listed = root / "JPEGImages" / "480p", root / "ImageSets" / "2017" / "val.txt"
    if not frames.is_dir() or not (root / "Annotations" / "480p").is_dir():
        raise FileNotFoundError(
            f"{root} is no DAVIS-2017 folder: it must hold JPEGImages/480p/NAME/*.jpg and Annotations/480p/NAME/*.png."
        )
    names = read_text(listed).split() if listed.is_file() else [p.name for p in sorted(frames.iterdir())]
    for name in names:
        pictures, labels = pictures_in(frames / name), pictures_in(root / "Annotations" / "480p" / name)
        if len(pictures) < 3 or [p.stem for p in pictures] != [p.stem for p in labels]:
            raise ValueError(
                f"video {name} in {root} has {len(pictures)} frames and {len(labels)} annotations: it needs at least 3,"
                " and an annotation of the same name for each."
            )
    if not names:
        raise ValueError(f"{root} holds no video.")
    return names


def working_size(size: tuple[int, int], short_side: int, multiple: int) -> tuple[int, int]:
    """(H, W) in pixels: the short side as given, the long one in proportion, down to a multiple."""
    height, width = size
    if height > width:
        return max(multiple, int(short_side * height / width // multiple) * multiple), short_side
    return short_side, max(multiple, int(short_side * width / height // multiple) * multiple)


def labels_of(path: Path) -> np.ndarray:
    """(H, W) int32: the colour of each pixel as one number, 0 = black = background."""
    return read_picture(path).astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def objects_of(labels: np.ndarray) -> np.ndarray:
    """The colours of the objects, ascending."""
    return np.setdiff1d(labels, [0])


def numbered(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colours -> 1, 2, … in their order; 0 for background and for colours that are not listed."""
    places = np.searchsorted(colours, labels).clip(max=len(colours) - 1)
    return np.where(colours[places] == labels, places + 1, 0)


@torch.no_grad()
def carry_on(encoder, frames: list[Path], first: np.ndarray, size: tuple[int, int], c: dict) -> list[np.ndarray]:
    """(H, W) object numbers of every frame, the first one's given."""
    features = _features(encoder, frames[0], size)
    grid = features.shape[1:]
    shares = _shrunk(first, grid).to(features.device)
    sources, found = [(features, shares)], [first]
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=c["previous_frames"])
    for frame in frames[1:]:
        features = _features(encoder, frame, size)
        shares = propagate(features, [*sources, *recent], c["temperature"], c["radius"], c["sources_kept"])
        recent.append((features, shares))
        found.append(_enlarged(shares, size, first.shape))
    return found


def propagate(features: Tensor, sources: list, temperature: float, radius: int, kept: int) -> Tensor:
    """Labels (K, h, w) of a frame from those of others.

    Args:
        features: (D, h, w), unit length.
        sources: pairs of features (D, h, w) and labels (K, h, w).
        radius: cells; a source must lie in the square of that radius around the target.
        kept: largest affinities, over all sources together; affinities equal to the smallest of them count too.
    """
    height, width = features.shape[1:]
    target = features.flatten(1)
    bank = torch.stack([f.flatten(1) for f, _ in sources])  # (S, D, N)
    labels = torch.cat([shares.flatten(1) for _, shares in sources], dim=1)  # (K, S N)
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).flatten(1)
    places = places.to(features.device)
    cells = max(1, _BLOCK_BYTES // (4 * bank.shape[0] * bank.shape[2]))
    parts = []
    for some in torch.arange(height * width, device=features.device).split(cells):
        affinity = (torch.einsum("sdn,dm->snm", bank, target[:, some]) / temperature).exp()
        near = (places[:, :, None] - places[:, None, some]).abs().amax(dim=0) <= radius
        affinity = (affinity * near).flatten(0, 1)  # (S N, m)
        least = affinity.topk(min(kept, len(affinity)), dim=0).values[-1]
        affinity = torch.where(affinity >= least, affinity, 0)
        parts.append(labels @ (affinity / affinity.sum(dim=0)))
    return torch.cat(parts, dim=1).view(-1, height, width)


def judge(found: list[np.ndarray], truth: list[np.ndarray], boundary: float) -> dict[int, tuple[float, float]]:
    """{object: (mean J, mean F)} over all frames but the first and the last, as in the DAVIS benchmark."""
    return {
        number: tuple(
            np.mean(
                [
                    (region_similarity(f == number, t == number), boundary_accuracy(f == number, t == number, boundary))
                    for f, t in zip(found[1:-1], truth[1:-1], strict=True)
                ],
                axis=0,
            )
        )
        for number in range(1, int(truth[0].max()) + 1)
    }


def region_similarity(found: np.ndarray, truth: np.ndarray) -> float:
    """J: intersection over union of two (H, W) bool masks; 1 where both are empty."""
    union = (found | truth).sum()
    return 1.0 if union == 0 else float((found & truth).sum() / union)


def boundary_accuracy(found: np.ndarray, truth: np.ndarray, tolerance: float) -> float:
    """F: harmonic mean of the precision and recall of boundary pixels, within a disk.

    Args:
        tolerance: radius of the disk, as a share of the diagonal, rounded up to pixels.
    """
    radius = np.ceil(tolerance * np.linalg.norm(found.shape))
    edges = [_boundary(mask) for mask in (found, truth)]
    if not edges[0].any() or not edges[1].any():
        return float(edges[0].any() == edges[1].any())
    near = [distance_transform_edt(~edge) <= radius for edge in edges]
    precision, recall = (edges[i][near[1 - i]].sum() / edges[i].sum() for i in (0, 1))
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from the next to the right, below, or diagonally; no wrap-around at the edges."""
    right, below, diagonal = mask.copy(), mask.copy(), mask.copy()
    right[:, :-1], below[:-1], diagonal[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ diagonal)


def _features(encoder, frame: Path, size: tuple[int, int]) -> Tensor:
    """(D, h, w), each cell of unit length."""
    return F.normalize(encoder(resized(read_picture(frame), size)[None])[0][0], dim=0)


def _calibrate(encoder: DenseEncoder, root: Path, names: list[str], size: tuple[int, int]) -> int:
    """Takes BatchNorm's statistics from frames of all videos, resized alike; returns how many."""
    videos = [pictures_in(root / "JPEGImages" / "480p" / name) for name in names]
    groups = np.repeat(np.arange(len(videos)), [len(video) for video in videos])
    paths = [path for video in videos for path in video]
    return encoder.calibrate(paths, lambda path: resized(read_picture(path), size), groups, CALIBRATION_FRAMES)


def _shrunk(labels: np.ndarray, grid) -> Tensor:
    """(H, W) numbers -> (K + 1, h, w) one-hot at the nearest pixels."""
    image = torch.from_numpy(labels.astype(np.float32))[None, None]
    small = F.interpolate(image, size=tuple(grid), mode="nearest-exact")[0, 0].long()
    return F.one_hot(small, int(labels.max()) + 1).permute(2, 0, 1).float()


def _enlarged(shares: Tensor, size: tuple[int, int], full: tuple[int, int]) -> np.ndarray:
    """(K + 1, h, w) shares -> (H, W) numbers: bilinear, each label stretched to 0..1, the largest, nearest pixels."""
    large = F.interpolate(shares[None], size=size, mode="bilinear", align_corners=False)[0]
    low, high = (large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True))
    large = torch.where(high > 0, (large - low) / (high - low).clamp(min=1e-12), large)
    numbers = large.argmax(dim=0)[None, None].float()
    return F.interpolate(numbers, size=full, mode="nearest-exact")[0, 0].long().cpu().numpy()

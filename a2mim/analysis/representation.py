"""Features of a network before and after pre-training: maps as colours, nearest neighbours, and the spectrum of the
reconstructions. The results are pictures and plain numbers; the report shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from a2mim.analysis.reconstructions import save
from a2mim.encoder import MaskedEncoder
from a2mim.evaluation.features import frozen, pooling_of
from a2mim.evaluation.knn import nearest
from a2mim.files import write_json
from a2mim.pixels import Preprocessing, denormalize

FILE = "representation.json"
NEIGHBOURS = 3  # of an image, in each network
_SIDE = 128  # pixels: what small pictures are enlarged to
_CLIP = 0.02  # share of the places that a colour cuts off at either end


@dataclass(frozen=True)
class Sample:
    """Images to look at.

    Args:
        images: (N, C, H, W) as stored.
        classes: the name of each image's class, "" where it has none.
    """

    images: Tensor
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class Album:
    """Pictures in a folder, and their descriptions in representation.json."""

    folder: Path
    parts: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    _number: int = 0

    def picture(self, pixels: np.ndarray, text: str, caption: str) -> dict[str, str]:
        """Writes (h, w, 3) uint8, enlarged to about 128 px, and returns its entry."""
        self._number += 1
        name = f"{self._number:03d}.png"
        zoom = max(1, round(_SIDE / max(pixels.shape[:2])))
        save(pixels.repeat(zoom, axis=0).repeat(zoom, axis=1), self.folder / name)
        return {"file": name, "text": text, "caption": caption}

    def add(self, title: str, says: str, rows: list[list[dict[str, str]]]) -> None:
        """A part: rows of pictures, each row about one image."""
        self.parts.append({"title": title, "says": says, "rows": rows})

    def write(self) -> None:
        write_json(self.folder / FILE, {"parts": self.parts, "figures": self.figures})


def add_feature_maps(
    album: Album, encoders: Mapping[str, MaskedEncoder], sample: Sample, pixels: Preprocessing
) -> None:
    """The last map of each encoder as colours: its first three principal components over the images.

    Args:
        encoders: "before" and "after".
    """
    shown = as_rgb(pixels.normalize(sample.images), pixels)
    rows = [[album.picture(image, f"image {i + 1}", "image")] for i, image in enumerate(shown)]
    for when, encoder in encoders.items():
        device = next(encoder.parameters()).device
        with frozen(encoder):
            features = encoder(pixels.normalize(sample.images.to(device)))[-1].float().cpu()
        colours = interpolate(torch.from_numpy(map_colours(features)).permute(0, 3, 1, 2), shown.shape[1:3])
        for i, picture in enumerate(colours.permute(0, 2, 3, 1).numpy()):
            rows[i].append(album.picture(picture, f"feature map of image {i + 1} {when} pre-training", when))
    says = (
        "The last feature map of each network. Red, green and blue are its first three principal components over these"
        " images, so equal colours mean similar features; colours of different networks cannot be compared."
    )
    album.add("Feature maps", says, rows)


def map_colours(features: Tensor) -> np.ndarray:
    """(B, D, h, w) -> (B, h, w, 3) uint8: the first three principal components over all places of all images.

    Each component is stretched to the whole range, but for the 2 % at either end. A map of fewer than three channels,
    or of fewer places, leaves the other colours at mid-grey.
    """
    batch, channels, height, width = features.shape
    places = features.permute(0, 2, 3, 1).reshape(-1, channels).double()
    centred = places - places.mean(0)
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    number = min(3, len(s))
    # a fixed sign: libraries choose it differently
    signs = v[:number].gather(1, v[:number].abs().argmax(1, keepdim=True)).sign().T
    scores = u[:, :number] * s[:number] * signs
    low, high = torch.quantile(scores, torch.tensor([_CLIP, 1 - _CLIP], dtype=torch.float64), dim=0)
    colours = torch.full((len(scores), 3), 0.5, dtype=torch.float64)
    spread = high - low
    stretched = torch.where(spread > 1e-12, (scores - low) / spread.clamp(min=1e-12), torch.tensor(0.5).double())
    colours[:, :number] = stretched.clamp(0, 1)
    return (colours * 255).round().to(torch.uint8).reshape(batch, height, width, 3).numpy()


def add_neighbours(
    album: Album, networks: Mapping[str, nn.Module], queries: Sample, bank: Sample, pixels: Preprocessing
) -> None:
    """The nearest images of each query in each network, with their distances (1 - cosine)."""
    shown, near = (as_rgb(pixels.normalize(part.images), pixels) for part in (queries, bank))
    rows = [
        [album.picture(image, f"query {i + 1} {name}".rstrip(), name or f"image {i + 1}")]
        for i, (image, name) in enumerate(zip(shown, queries.classes, strict=True))
    ]
    neighbours = min(NEIGHBOURS, len(bank))
    for when, model in networks.items():
        cosines, numbers = nearest(pooled(model, bank, pixels), pooled(model, queries, pixels), neighbours)
        for i, (values, members) in enumerate(zip(cosines.tolist(), numbers.tolist(), strict=True)):
            for rank, (value, j) in enumerate(zip(values, members, strict=True)):
                distance = f"{max(0.0, 1 - value):.3g}"
                text = f"neighbour {rank + 1} of query {i + 1} {when} pre-training, distance {distance}"
                caption = f"{when} {rank + 1}: {distance}" + (f", {bank.classes[j]}" if bank.classes[j] else "")
                rows[i].append(album.picture(near[j], text, caption))
    says = (
        f"The {neighbours} nearest of {len(bank)} training images, before and after pre-training, with their distance"
        " (1 - cosine of the features; 0 is the same direction). Distances of different networks cannot be compared."
    )
    album.add("Nearest neighbours", says, rows)


def pooled(model: nn.Module, sample: Sample, pixels: Preprocessing, batch_size: int = 64) -> Tensor:
    """(N, D) float32: the features that timm passes to a classifier."""
    device, pool = next(model.parameters()).device, pooling_of(model, "default")
    with frozen(model):
        parts = [pool(pixels.normalize(part.to(device))).float().cpu() for part in sample.images.split(batch_size)]
    return torch.cat(parts)


def add_spectrum(album: Album, target: Tensor, recon: Tensor) -> None:
    """The radial power spectrum of target and reconstruction, (B, C, H, W) normalised."""
    lines: list[dict[str, Any]] = []
    for label, images in (("image", target), ("reconstruction", recon)):
        frequency, power = radial_power(images)
        lines.append({"label": label, "x": frequency, "y": power})
    upper = len(lines[0]["y"]) // 2
    shares = [sum(line["y"][upper:]) for line in lines]
    share = shares[1] / shares[0] if shares[0] > 0 else float("nan")
    message = (
        f"Power by spatial frequency, mean over {len(target)} images: in the upper half of the frequencies the"
        f" reconstruction has {share:.0%} of the image's power."
    )
    album.figures.append(
        {
            "title": "Spectrum of the reconstruction",
            "x_label": "cycles per pixel",
            "y_label": "power",
            "message": message,
            "log": True,
            "lines": lines,
        }
    )


def radial_power(images: Tensor) -> tuple[list[float], list[float]]:
    """(frequencies in cycles per pixel, mean power on each ring) of (B, C, H, W), over images and channels.

    Each image's mean is taken away first. Rings are one cycle per image side wide, up to the Nyquist frequency 0.5.
    """
    height, width = images.shape[-2:]
    centred = images.double() - images.double().mean(dim=(-2, -1), keepdim=True)
    power = torch.fft.fft2(centred, norm="ortho").abs().square().mean(dim=(0, 1)).cpu()
    rows, columns = torch.fft.fftfreq(height).double(), torch.fft.fftfreq(width).double()
    radius = (rows[:, None].square() + columns[None].square()).sqrt()
    side = min(height, width)
    ring = (radius * side).round().long()
    inside = (ring >= 1) & (ring <= side // 2)
    counts = torch.bincount(ring[inside], minlength=side // 2 + 1)
    sums = torch.bincount(ring[inside], weights=power[inside], minlength=side // 2 + 1)
    kept = counts > 0
    numbers = torch.arange(len(counts))[kept]
    return (numbers.double() / side).tolist(), (sums[kept] / counts[kept]).tolist()


def as_rgb(images: Tensor, pixels: Preprocessing) -> np.ndarray:
    """(B, C, H, W) normalised -> (B, H, W, 3) uint8: the first three channels, or the first one as grey."""
    shown = denormalize(images.cpu(), pixels.mean, pixels.std)[:, :3]
    if shown.shape[1] < 3:
        shown = shown[:, :1].expand(-1, 3, -1, -1)
    return shown.permute(0, 2, 3, 1).contiguous().numpy()

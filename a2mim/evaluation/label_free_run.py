"""The protocol `label-free`: numbers of a frozen encoder on images that need no label, each with an interval."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from a2mim.batchnorm import batchnorm_statistics, calibrate_batchnorm, has_batchnorm, load_statistics
from a2mim.data import EvalLoader, ImageDataset, Reading, open_dataset
from a2mim.evaluation import label_free
from a2mim.evaluation.calibration import calibration_batches, calibration_loader, calibration_rows
from a2mim.evaluation.cells import MapReader, map_of
from a2mim.evaluation.encoder import Encoder
from a2mim.evaluation.features import pooling_name
from a2mim.evaluation.parts import counted, share_of
from a2mim.evaluation.taps import CELLS
from a2mim.processes.leading import Share, spread
from a2mim.protocols import Protocol

GROUPS = 10  # of the jackknife
FEWEST = 2 * GROUPS  # images
_SAMPLE = 256  # images whose cells are measured

# name -> (what it is called, function of (N, D))
NUMBERS: dict[str, tuple[str, Callable[[Tensor], float]]] = {
    "effective-rank": ("effective rank, centred", label_free.effective_rank),
    "rankme": ("RankMe, uncentred", label_free.rankme),
    "participation": ("participation ratio", label_free.participation_ratio),
    "alpha-req": ("α-ReQ", lambda z: found.alpha if (found := label_free.alpha_req(z)) else float("nan")),
    "uniformity": ("uniformity, centred", label_free.uniformity),
}


class LabelFree:
    """An encoder and images without labels. BatchNorm is calibrated on them where its statistics need it.

    Args:
        source, device, img_size: see `Encoder`.
        data: any images, see `open_dataset`; labels are not used.
        options: "allow_partial", "seed", "access", "reading".
    """

    def __init__(
        self, source, protocol: Protocol, data, device=None, img_size=None, batch_size=64, num_workers=0, **options
    ):
        self.protocol, self.batch_size, self.num_workers = protocol, batch_size, num_workers
        c = protocol.constants
        encoder = Encoder(source, device, img_size, options.get("allow_partial", False), options.get("seed", 0))
        form = {"in_chans": encoder.channels, "access": options.get("access")}
        dataset = open_dataset(data, "train", **form, **(options.get("reading") or Reading()).arguments())
        self.short_side = round(max(encoder.img_size) * c["resize"])
        self.encoder, self.dataset = encoder, dataset
        self.calibrate = not encoder.clean_statistics and has_batchnorm(encoder.model)
        self.rows = np.sort(calibration_rows(dataset, c["images"], c["seed"]))

    def loader(self, rows: np.ndarray) -> EvalLoader:
        """Central crops of some rows."""
        size, interpolation = self.encoder.img_size, self.protocol.constants["interpolation"]
        return EvalLoader(
            self.dataset, size, self.short_side, interpolation, self.batch_size, self.num_workers, indices=rows
        )

    def share(self, loader: EvalLoader) -> Share:
        """This process's share of the features of a loader's images."""
        return share_of(loader, self.encoder.taps((self.protocol.constants["pooling"],)))

    def helpers(self) -> dict[str, Callable[..., Share]]:
        """See `a2mim.processes.leading.lead`."""
        return {"features": self._helped_share}

    def _helped_share(self, statistics: dict[str, Tensor]) -> Share:
        """The share of a process that does not lead, with BatchNorm as the first process has calibrated it."""
        load_statistics(self.encoder.model, statistics)
        return self.share(self.loader(self.rows))

    def features(self) -> Tensor:
        """(N, D) of the readable images, after BatchNorm has been calibrated."""
        model, loader = self.encoder.model, self.loader(self.rows)
        if self.calibrate:
            images = calibration_loader(
                self.dataset, self.encoder.img_size, self.short_side, "bicubic", self.num_workers
            )
            calibrate_batchnorm(model, calibration_batches(images, self.encoder.normalized))
        statistics = batchnorm_statistics(model) if self.calibrate else {}
        parts = counted(loader, spread("features", (statistics,), self.share(loader)), len(self.rows))
        return torch.cat([part.found[self.protocol.constants["pooling"]].cpu() for part in parts])

    def results(self) -> list[dict]:
        """One result a number: of all images, or of as many as the protocol says."""
        protocol, encoder, dataset = self.protocol, self.encoder, self.dataset
        c, features = protocol.constants, self.features()
        if len(features) < FEWEST:
            raise ValueError(
                f"{protocol.name} needs at least {FEWEST} readable images, {dataset.title} has {len(features)}."
            )
        found = [(name, what, *_with_interval(measure, features)) for name, (what, measure) in NUMBERS.items()]
        found += _of_cells(encoder, self.loader, self.rows, c)
        note = (
            f"label-free numbers are of {len(features):,} images and {features.shape[1]} channels: compare them with"
            " networks of as many channels on as many images only; they say nothing of how well classes are told apart"
        )
        if len(features) < 10 * features.shape[1]:
            note += f"; ranks grow with the number of images until about {10 * features.shape[1]:,}"
        common = _common(protocol, encoder, dataset, features, c) | {"note": note}
        return [
            common
            | {"protocol": f"{protocol.name}/{name}", "metric": what, "top1_last": value, "interval": [low, high]}
            | {"n_test": n}
            for name, what, value, low, high, n in found
            if np.isfinite(value)
        ]


def _of_cells(encoder: Encoder, loader_of, rows: np.ndarray, c: dict) -> list[tuple]:
    """Spatial rank and LiDAR; a network without a map has neither."""
    try:
        reader = encoder.reader(CELLS)
    except ValueError:
        return []
    run = map_of(encoder.model, reader)
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), max(_SAMPLE, c["lidar_images"]))).astype(int)]
    generator = torch.Generator().manual_seed(c["seed"])
    ranks: list[float] = []
    views: list[Tensor] = []
    for batch in loader_of(some):
        images = encoder.normalized(batch["images"])
        for cells in run(images).flatten(2).transpose(1, 2).split(1):
            ranks.append(label_free.spatial_rank(cells.cpu()))
        if sum(map(len, views)) < c["lidar_images"]:
            views.append(masked_views(run, images, reader, c["lidar_views"], c["lidar_ratio"], generator).cpu())
    shown = torch.cat(views)[: c["lidar_images"]]
    half = 1.96 * np.std(ranks) / len(ranks) ** 0.5
    mean = float(np.mean(ranks))
    lidar = _with_interval(label_free.lidar, shown)
    found = [("spatial-rank", "rank over an image's cells", mean, mean - half, mean + half, len(ranks))]
    return [*found, ("lidar", f"LiDAR, {c['lidar_views']} masks as views", *lidar)]


def masked_views(
    run: Callable[[Tensor], Tensor], images: Tensor, reader: MapReader, n_views: int, ratio: float, generator
) -> Tensor:
    """(B, n_views, D): the mean over visible cells, under a mask of its own in each view.

    Hidden pixels take their image's mean colour.
    """
    (h, w), (height, width) = reader.grid, images.shape[2:]
    n_hidden = min(h * w - 1, max(1, round(ratio * h * w)))
    found = []
    for _ in range(n_views):
        order = torch.rand(len(images), h * w, generator=generator).argsort(dim=1)
        hidden = (order < n_hidden).view(-1, 1, h, w).to(images.device)
        rows, columns = (torch.arange(side) * cells // side for side, cells in ((height, h), (width, w)))
        pixels = hidden[:, :, rows][:, :, :, columns]
        filled = torch.where(pixels, images.mean((2, 3), keepdim=True), images)
        maps, visible = run(filled), (~hidden).float()
        found.append((maps * visible).sum((2, 3)) / visible.sum((2, 3)))
    return torch.stack(found, 1)


def _with_interval(measure: Callable[[Tensor], float], rows: Tensor) -> tuple[float, float, float, int]:
    """(value, low, high, images): 95 % by the jackknife over groups of images.

    A bootstrap would show images twice, and that lowers every rank.
    """
    value, groups = measure(rows), np.array_split(np.random.default_rng(0).permutation(len(rows)), GROUPS)
    every = np.arange(len(rows))
    left_out = [measure(rows[torch.from_numpy(np.setdiff1d(every, group))]) for group in groups]
    half = 1.96 * float(np.sqrt((GROUPS - 1) / GROUPS * np.sum((np.array(left_out) - np.mean(left_out)) ** 2)))
    return value, value - half, value + half, len(rows)


def _common(protocol: Protocol, encoder: Encoder, dataset: ImageDataset, features: Tensor, c: dict) -> dict:
    return {
        "protocol_hash": protocol.hash,
        "overridden": protocol.overridden,
        "constants": c,
        "sources": list(protocol.sources),
        "top1_best": None,
        "correct": "",
        "channels": features.shape[1],
        "pooling": pooling_name(encoder.model, c["pooling"]),
        "encoder": encoder.name,
        "encoder_hash": encoder.hash,
        "loading": encoder.loading,
        "loaded": encoder.loaded,
        "data": dataset.title,
        "data_fingerprint": dataset.fingerprint,
        "img_size": list(encoder.img_size),
    }

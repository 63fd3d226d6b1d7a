"""The paper's analyses of one encoder, and near-duplicates of its images, each as JSON with figures: `a2mim analyze`.

An analysis is not computed again if its file exists with the same key. The interactions are stored image by image, so
that the next command continues after a kill.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from a2mim.analysis import figures
from a2mim.analysis.duplicates import duplicates
from a2mim.analysis.interactions import Sampling, interaction_strength, number_of_pairs
from a2mim.analysis.occlusion import accuracy_under_occlusion
from a2mim.analysis.spectra import spectra
from a2mim.analysis.subjects import Judged, Network, Subjects, key_of
from a2mim.evaluation.label_free import effective_rank, rankme
from a2mim.files import make_own_folder, read_json, write_json

WHAT = ("interactions", "fourier", "occlusion", "rank", "duplicates")
SECONDS = {"interactions": 300, "occlusion": 90}  # target time of the default sample, both networks together
PAPER = {"pairs": 50, "contexts": 50}
PAPER_IMAGES = 50
_MOST = {"fourier": 256, "occlusion": 1000, "rank": 2000, "duplicates": 5000}  # images; duplicates: of each part
_CELL = 16  # pixels, as in the paper; images that hold fewer than 7 of them a side get 8 cells a side
_BATCH = 256


@dataclass(frozen=True)
class Amount:
    """The amount of sampling.

    Args:
        samples: images of the interactions; None: as many as the time allows.
        paper: 50 pairs and 50 contexts, as in the paper.
    """

    samples: int | None = None
    paper: bool = False

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"--samples {self.samples} must be at least 1 image")


def analyze(
    subjects: Subjects, what: list[str], folder: Path, amount: Amount, say: Callable[[str], object] = print
) -> list[Path]:
    """Computes the analyses and returns their files: folder/<name>.json.

    Raises:
        ValueError: an unknown analysis, or one that these images or this network do not allow.
    """
    for name in what:
        if name not in WHAT:
            raise ValueError(f"there is no analysis {name!r}: choose among {', '.join(WHAT)}")
    make_own_folder(folder)
    plan = _plan(subjects, what, folder, amount)
    run: dict[str, Callable[[], dict[str, Any]]] = {
        "interactions": lambda: _interactions(subjects, plan, folder, say),
        "fourier": lambda: _fourier(subjects),
        "occlusion": lambda: _occlusion(subjects, plan, say),
        "rank": lambda: _rank(subjects),
        "duplicates": lambda: _duplicates(subjects),
    }
    files = []
    for name in dict.fromkeys(what):
        path, key = folder / f"{name}.json", key_of(subjects, analysis=name, **_part(plan, name))
        if _read(path).get("key") == key:
            say(f"{name}: {path} is up to date")
        else:
            began = time.perf_counter()
            found = run[name]()
            write_json(path, {"key": key, "source": subjects.source, **found})
            say(f"{name}: {found['message'].rstrip('.')} ({time.perf_counter() - began:.0f} s; {path})")
        files.append(path)
    return files


def _part(plan: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in plan.items() if key == "grid" or key.startswith(name)}


def _plan(subjects: Subjects, what: list[str], folder: Path, amount: Amount) -> dict[str, Any]:
    """The amount of sampling, stored in the folder: a resumed command must not measure another rate and change it."""
    path, key = folder / ".plan.json", key_of(subjects, **asdict(amount))
    kept = _read(path)
    plan = (
        kept["plan"] if kept.get("key") == key and isinstance(kept.get("plan"), dict) else {"grid": grid_of(subjects)}
    )
    missing = [name for name in ("interactions", "occlusion") if name in what and f"{name}_images" not in plan]
    if missing:
        rate = _rate(subjects)
        if "interactions" in missing:
            sampling, images = sample_for(rate, tuple(plan["grid"]), len(subjects.test), amount)
            plan |= {"interactions_images": images, "interactions_pairs": sampling.pairs}
            plan["interactions_contexts"] = sampling.contexts
        if "occlusion" in missing:
            images = int(SECONDS["occlusion"] * rate / 2 / 31)
            plan["occlusion_images"] = max(50, min(_MOST["occlusion"], images))
        write_json(path, {"key": key, "plan": plan, "images_per_second": rate})
    return plan


def sample_for(rate: float, grid: tuple[int, int], available: int, amount: Amount) -> tuple[Sampling, int]:
    """(pairs and contexts, number of images) that both networks take `SECONDS` for, at `rate` images a second."""
    most = min(PAPER["pairs"], number_of_pairs(grid))
    if amount.paper:
        return Sampling(grid, most, PAPER["contexts"]), min(available, amount.samples or PAPER_IMAGES)
    orders = len(Sampling(grid, 1, 1).orders)
    contexts = SECONDS["interactions"] * rate / 2 / 4 / orders  # pairs x contexts x images
    images = amount.samples or 10
    side = int((contexts / images) ** 0.5)
    sampling = Sampling(grid, max(4, min(most, side)), max(4, min(PAPER["contexts"], side)))
    if amount.samples is None:
        images = max(1, min(100, int(contexts / sampling.pairs / sampling.contexts)))
    return sampling, min(available, images)


def grid_of(subjects: Subjects) -> list[int]:
    """Cells of 16 px, or eighths of an image that is small."""
    height, width = subjects.pixels.img_size
    grid = [height // _CELL, width // _CELL]
    if height % _CELL == 0 and width % _CELL == 0 and min(grid) >= 7:
        return grid
    cells = [max(n for n in range(1, 9) if side % n == 0) for side in (height, width)]
    if min(cells) < 2:
        raise ValueError(f"images of {height} x {width} px cannot be cut into equal cells; give an --img-size that can")
    return cells


@torch.no_grad()
def _rate(subjects: Subjects) -> float:
    """Images a second of the trained network: the better of two passes over a batch, after one that warms up."""
    images = torch.zeros(64, subjects.pixels.channels, *subjects.pixels.img_size, device=subjects.device)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subjects.networks[0].pooled(images).sum().item()
        times.append(time.perf_counter() - began)
    return len(images) / min(times[1:])


def _interactions(subjects: Subjects, plan: dict[str, Any], folder: Path, say) -> dict[str, Any]:
    classifiers = {network.label: subjects.classifier(network) for network in subjects.networks}
    sampling = Sampling(tuple(plan["grid"]), plan["interactions_pairs"], plan["interactions_contexts"], subjects.seed)
    known = set.intersection(*(set(one.classes.tolist()) for one in classifiers.values()))
    rows = [
        r
        for r in subjects.rows(subjects.test, len(subjects.test), labelled=True)
        if int(subjects.test.labels[r]) in known
    ]
    rows = rows[: plan["interactions_images"]]
    if not rows:
        raise ValueError(f"{subjects.test.describe()}: no image has a class that the classifier knows")
    images, labels = (torch.cat(parts) for parts in zip(*subjects.batches(subjects.test, np.array(rows)), strict=True))
    _tell_time(subjects, sampling, len(images), say)
    results = {}
    for network in subjects.networks:
        judged = classifiers[network.label]
        say(f"interactions: the {network.label} network answers by {judged.says}")
        places = torch.searchsorted(judged.classes, labels)
        key = key_of(subjects, network=network.label, classifier=judged.says, **asdict(sampling), rows=_numbers(rows))
        store = folder / f".interactions-{network.label}-{key}.npy"
        results[network.label] = interaction_strength(
            judged.score, images, places, sampling, _BATCH, store, f"interactions, {network.label}"
        )
    told = {label: judged.says for label, judged in classifiers.items()}
    sample = {"images": len(images), **asdict(sampling), "forwards_per_image": sampling.forwards}
    return figures.interactions(results) | {"classifiers": told, "sample": sample, "results": results}


def _tell_time(subjects: Subjects, sampling: Sampling, images: int, say) -> None:
    seconds = 2 * images * sampling.forwards / _rate(subjects)
    about = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    say(
        f"interactions: {images} images, {sampling.pairs} pairs, {sampling.contexts} contexts, {len(sampling.orders)}"
        f" orders on {sampling.grid[0]} x {sampling.grid[1]} cells: about {about} for both networks; --samples N takes"
        " more or fewer images, --paper the paper's 50 pairs and 50 contexts"
    )


def _numbers(rows) -> list[int]:
    return [int(row) for row in rows]


def _fourier(subjects: Subjects) -> dict[str, Any]:
    rows = subjects.rows(subjects.test, _MOST["fourier"])
    found = {
        network.label: spectra(network.model, (images for images, _ in subjects.batches(subjects.test, rows)))
        for network in subjects.networks
    }
    results = {label: [asdict(one) for one in depths] for label, depths in found.items()}
    return figures.fourier(found) | {"images": len(rows), "results": results}


def _occlusion(subjects: Subjects, plan: dict[str, Any], say) -> dict[str, Any]:
    rows = subjects.rows(subjects.test, plan["occlusion_images"], labelled=True)
    classifiers = {network.label: subjects.classifier(network) for network in subjects.networks}
    grid, results = tuple(plan["grid"]), {}
    for label, judged in classifiers.items():
        say(f"occlusion: the {label} network answers by {judged.says}")
        results[label] = accuracy_under_occlusion(
            _answer(judged), subjects.batches(subjects.test, rows), grid, subjects.seed
        )
    told = {label: judged.says for label, judged in classifiers.items()}
    return figures.occlusion(results) | {"classifiers": told, "images": len(rows), "grid": grid, "results": results}


def _answer(judged: Judged) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: judged.classes[judged.score(images).argmax(1).cpu()]


def _rank(subjects: Subjects) -> dict[str, Any]:
    rows = subjects.rows(subjects.test, _MOST["rank"])
    results = {network.label: _spectrum(subjects, network, rows) for network in subjects.networks}
    return figures.rank(results) | {"images": len(rows), "results": results}


def _spectrum(subjects: Subjects, network: Network, rows: np.ndarray) -> dict[str, Any]:
    """Singular values of the centred features, relative to the largest, and the ranks that follow from them."""
    features = torch.cat([network.pooled(images).cpu() for images, _ in subjects.batches(subjects.test, rows)])
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    values = values / values[0].clamp(min=1e-300)
    return {"values": values.tolist(), "rankme": rankme(features), "effective_rank": effective_rank(features)}


def _duplicates(subjects: Subjects) -> dict[str, Any]:
    train, test = (subjects.rows(part, _MOST["duplicates"]) for part in (subjects.train, subjects.test))
    return duplicates(subjects.train, train, subjects.test, test)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""Multi-order interaction strength among the cells of a grid: how much two cells tell together beyond what each tells
alone.

The players are the n cells of a grid laid over an image. A coalition keeps the pixels of its cells, and the others are
0 after normalisation. Its value is the margin of the true class: v = logit_y - logsumexp(the other logits). For cells
i and j and a context S of m other cells,

    Δ(i, j, S) = v(S ∪ {i, j}) - v(S ∪ {i}) - v(S ∪ {j}) + v(S).

The interaction of order m of a pair is the mean of Δ over contexts of m cells, I_m the mean of its absolute value over
pairs and images, and the strength J(m) = I_m / (mean of I over the sampled orders), so that the mean of J is 1.

Sources: H. Deng et al., Discovering and Explaining the Representation Bottleneck of DNNs, ICLR 2022; used in A²MIM,
https://arxiv.org/abs/2205.13943.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from a2mim.files import replacing
from a2mim.text import ProgressBar

RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)  # of the cells that may be context
_REACH = 2  # cells: how far apart the two of a pair lie at most, along each axis

Score = Callable[[Tensor], Tensor]  # normalised images (B, C, H, W) -> logits (B, K)


@dataclass(frozen=True)
class Sampling:
    """How much is sampled.

    Args:
        grid: cells along (height, width); both must divide the image.
        pairs: of cells, an image.
        contexts: a pair and an order.
        seed: of pairs and contexts. Image k has its own stream, so that the number of images changes no other draw.
    """

    grid: tuple[int, int] = (14, 14)
    pairs: int = 50
    contexts: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        rows, columns = self.grid
        if rows < 2 or columns < 2:
            raise ValueError(f"grid={self.grid} must have at least 2 cells along each axis")
        for name in ("pairs", "contexts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        most = number_of_pairs(self.grid)
        if self.pairs > most:
            raise ValueError(f"pairs={self.pairs}: a grid of {rows} x {columns} has only {most} pairs of near cells")

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def orders(self) -> list[int]:
        """The sampled sizes of contexts, ascending, each once."""
        return sorted({int((self.cells - 2) * ratio) for ratio in RATIOS})

    @property
    def forwards(self) -> int:
        """Images that the classifier sees for one image: four coalitions a context."""
        return 4 * self.pairs * self.contexts * len(self.orders)


def number_of_pairs(grid: tuple[int, int]) -> int:
    """Unordered pairs of different cells that are at most two cells apart along each axis."""
    rows, columns = grid
    offsets = [(a, b) for a in range(-_REACH, _REACH + 1) for b in range(-_REACH, _REACH + 1) if (a, b) > (0, 0)]
    return sum(max(0, rows - abs(a)) * max(0, columns - abs(b)) for a, b in offsets)


def draw_pairs(sampling: Sampling, generator: np.random.Generator) -> np.ndarray:
    """(pairs, 2) numbers of cells: j is a cell within two cells of i; no unordered pair comes twice."""
    rows, columns = sampling.grid
    found: dict[tuple[int, int], None] = {}
    while len(found) < sampling.pairs:
        row, column = int(generator.integers(rows)), int(generator.integers(columns))
        near_row = generator.integers(max(0, row - _REACH), min(rows, row + _REACH + 1))
        near_column = generator.integers(max(0, column - _REACH), min(columns, column + _REACH + 1))
        i, j = int(row * columns + column), int(near_row * columns + near_column)
        if i != j and (j, i) not in found:
            found[i, j] = None
    return np.array(list(found), np.int64)


def draw_contexts(sampling: Sampling, pair: np.ndarray, order: int, generator: np.random.Generator) -> np.ndarray:
    """(contexts, cells) bool: the cells of each context, exactly `order` of them, and never the two of the pair."""
    others = np.setdiff1d(np.arange(sampling.cells), pair)
    chosen = np.zeros((sampling.contexts, sampling.cells), bool)
    for row in chosen:
        row[generator.permutation(others)[:order]] = True
    return chosen


def margins(logits: Tensor, label: int) -> Tensor:
    """(B, K) -> (B,): the logit of the class minus the log of the sum of the others' exponentials."""
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return logits[:, label] - torch.logsumexp(others, dim=1)


def keep_cells(image: Tensor, kept: Tensor, grid: tuple[int, int]) -> Tensor:
    """image: (C, H, W) normalised; kept: (B, cells) bool. Returns (B, C, H, W) with 0 where a cell is not kept."""
    height, width = image.shape[1] // grid[0], image.shape[2] // grid[1]
    cells = kept.reshape(-1, 1, *grid)
    pixels = cells.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
    return torch.where(pixels, image, torch.zeros((), dtype=image.dtype, device=image.device))


@torch.no_grad()
def interactions_of(
    score: Score,
    image: Tensor,
    label: int,
    sampling: Sampling,
    number: int,
    batch_size: int,
    after_order: Callable[[], object] = lambda: None,
) -> Tensor:
    """(orders, pairs) float64: the mean of Δ over contexts, for one image.

    Args:
        image: (C, H, W), normalised.
        label: the class whose margin is the value.
        number: of the image, which selects its stream of random numbers.
        batch_size: images that the classifier sees at a time.
        after_order: called after each order.

    Raises:
        ValueError: the grid does not divide the image.
    """
    rows, columns = sampling.grid
    if image.shape[1] % rows or image.shape[2] % columns:
        raise ValueError(
            f"a grid of {rows} x {columns} cells does not divide images of {image.shape[1]} x {image.shape[2]} px"
        )
    generator = np.random.default_rng([sampling.seed, number])
    pairs = draw_pairs(sampling, generator)
    found = torch.empty(len(sampling.orders), sampling.pairs, dtype=torch.float64)
    for o, order in enumerate(sampling.orders):
        coalitions = torch.from_numpy(
            np.stack([_coalitions(draw_contexts(sampling, pair, order, generator), pair) for pair in pairs])
        )  # (pairs, 4, contexts, cells)
        values = []
        for part in coalitions.reshape(-1, sampling.cells).to(image.device).split(batch_size):
            values.append(margins(score(keep_cells(image, part, sampling.grid)).double(), label).cpu())
        both, first, second, neither = torch.cat(values).reshape(sampling.pairs, 4, sampling.contexts).unbind(1)
        found[o] = (both - first - second + neither).mean(dim=1)
        after_order()
    return found


def _coalitions(contexts: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """(4, contexts, cells): with both cells, with the first, with the second, with neither."""
    stacked = np.repeat(contexts[None], 4, axis=0)
    stacked[[0, 1], :, pair[0]] = True
    stacked[[0, 2], :, pair[1]] = True
    return stacked


def interaction_strength(
    score: Score,
    images: Tensor,
    labels: Tensor,
    sampling: Sampling,
    batch_size: int = 256,
    store: Path | None = None,
    title: str = "interactions",
) -> dict[str, list[float]]:
    """J(m) and I_m over images.

    Args:
        score: the classifier, in evaluation mode.
        images: (N, C, H, W), normalised, on the classifier's device.
        labels: (N,) int64, classes of the classifier.
        store: a file with the results of each image, from which a killed analysis continues; the caller names
            it by everything that the numbers depend on.

    Returns:
        "order" (m / n), "strength" (J), "interaction" (I_m), and "low" and "high": the 95 % bootstrap interval of J
        over images.
    """
    done = _restore(store, sampling)
    orders = len(sampling.orders)  # the unit of progress: an image may take minutes
    bar = ProgressBar(
        total=orders * len(images), initial=orders * len(done), desc=f"{title}: orders of images", leave=False
    )
    with bar:
        for number in range(len(done), len(images)):
            found = interactions_of(
                score, images[number], int(labels[number]), sampling, number, batch_size, after_order=bar.update
            )
            done.append(found.abs().mean(dim=1))
            _keep(store, done)
    return summarise(torch.stack(done[: len(images)]).numpy(), sampling)


def summarise(per_image: np.ndarray, sampling: Sampling) -> dict[str, list[float]]:
    """(N, orders) mean absolute interactions -> what `interaction_strength` returns."""
    interaction = per_image.mean(axis=0)
    average = interaction.mean()
    strength = interaction / average if average > 0 else np.full_like(interaction, np.nan)
    generator = np.random.default_rng(0)
    drawn = np.stack([per_image[generator.integers(len(per_image), size=len(per_image))].mean(0) for _ in range(2000)])
    scale = drawn.mean(axis=1, keepdims=True)
    low, high = np.percentile(drawn / np.where(scale > 0, scale, np.nan), [2.5, 97.5], axis=0)
    orders = [order / sampling.cells for order in sampling.orders]
    columns = {"order": orders, "strength": strength, "interaction": interaction, "low": low, "high": high}
    return {key: [float(value) for value in values] for key, values in columns.items()}


def _restore(store: Path | None, sampling: Sampling) -> list[Tensor]:
    """The results that a killed analysis stored; none if the file is damaged or from another sampling."""
    if store is None or not store.is_file():
        return []
    try:
        kept = np.load(store, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return []
    good = kept.ndim == 2 and kept.shape[1] == len(sampling.orders) and kept.dtype == np.float64
    return list(torch.from_numpy(kept)) if good and np.isfinite(kept).all() else []


def _keep(store: Path | None, done: list[Tensor]) -> None:
    if store is not None:
        with replacing(store, "wb") as file:
            np.save(file, torch.stack(done).numpy(), allow_pickle=False)

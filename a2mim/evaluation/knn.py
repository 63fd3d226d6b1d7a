"""DINO's weighted k-nearest-neighbour classifier on frozen features, deterministic to the last tie."""

import torch
import torch.nn.functional as F
from torch import Tensor

from a2mim.evaluation.features import check_features, class_positions
from a2mim.evaluation.shown import Record

_CHUNK = 2**15  # rows of the bank multiplied at once


def knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    block_bytes: int = 2**27,
    also_k=(),
    device=None,
) -> dict:
    """Votes of the k most similar training images, each weighted exp(cosine / temperature).

    Ties are broken: of equally similar training images the earlier one is the neighbour; of classes with equal votes
    the smaller label comes first. A test class without training images is simply never right.

    Args:
        train_features, test_features: (N, D) and (M, D) float; normalised to unit length here, block by block, so they
            may lie on disk.
        train_labels, test_labels: (N,) and (M,) int64 >= 0, any values.
        k: neighbours, clamped to the number of training images (the result's "note" then says so).
        temperature: dimensionless, > 0.
        block_bytes: of similarities held at once; changes nothing else. Beside them memory holds the queries and their
            neighbours, 12 bytes each.
        also_k: further numbers of neighbours, from the same similarities.
        device: where blocks are multiplied; None: where the training features are.

    Returns:
        "top1" and "top5" in percent, "correct" (M,) bool for top-1, and the constants that decide the numbers;
        "by_k": {k: [top1, top5]}, for also_k too. As in the original, top-5 looks at the first min(5, k) classes, also
        at such without a vote.

    Raises:
        ValueError: k or temperature out of range, or features that cannot be judged (see `check_features`).

    Source: https://github.com/facebookresearch/dino, eval_knn.py; differs in accepting any labels and any set sizes.

    Examples:
        >>> features, labels = torch.eye(4), torch.arange(4)
        >>> a2mim.knn(features, labels, features, labels, k=1)["top1"]
        100.0
    """
    for number in (k, *also_k):
        check_constants(number, temperature)
    check_features(train_features, train_labels, test_features, test_labels)
    device = train_features.device if device is None else device
    used_k = min(k, len(train_features))
    ks = sorted({min(number, len(train_features)) for number in (k, *also_k)})
    classes, targets = torch.unique(train_labels.to(device), return_inverse=True)
    values, neighbours = nearest(train_features, test_features, ks[-1], block_bytes, device)
    parts: dict[int, list[Tensor]] = {number: [] for number in ks}
    rows = max(1, block_bytes // (16 * len(classes)))
    for start in range(0, len(values), rows):
        block = slice(start, start + rows)
        for number in ks:
            votes = _votes(values[block, :number], targets[neighbours[block, :number]], len(classes), temperature)
            parts[number].append(_rank_of_label(votes, classes, test_labels[block].to(device)).cpu())
    ranks = {number: torch.cat(found) for number, found in parts.items()}
    by_k = {number: _top1_top5(rank, number) for number, rank in ranks.items()}
    result = {
        "protocol": "dino-knn",
        "top1": by_k[used_k][0],
        "top5": by_k[used_k][1],
        "k": used_k,
        "temperature": temperature,
        "by_k": by_k,
        "n_train": len(train_features),
        "n_test": len(test_features),
        "n_classes": len(classes),
        "correct": ranks[used_k] == 0,
    }
    if used_k < k:
        result["note"] = f"k was {k}; the training set has only {used_k} images, so k = {used_k}"
    return Record(result)


def check_constants(k: int, temperature: float) -> None:
    if k < 1 or not temperature > 0:
        raise ValueError(f"k={k} and temperature={temperature} were given: k must be at least 1, temperature above 0.")


def nearest(bank: Tensor, queries: Tensor, k: int, block_bytes: int = 2**27, device=None) -> tuple[Tensor, Tensor]:
    """(M, k) cosines, largest first, and the (M, k) rows of the bank they belong to; the earlier row first on ties.

    Args:
        bank, queries: (N, D) and (M, D) float of any length. The bank is read once, _CHUNK rows at a time.
    """
    queries = F.normalize(queries.float(), dim=1).to(device)
    values = queries.new_empty(len(queries), k)
    rows = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    chunk_rows = max(k, _CHUNK)
    block_rows = max(1, block_bytes // (4 * min(chunk_rows, len(bank))))
    for first in range(0, len(bank), chunk_rows):
        chunk = F.normalize(bank[first : first + chunk_rows].to(queries.device).float(), dim=1)
        for start in range(0, len(queries), block_rows):
            block = slice(start, start + block_rows)
            similarity = queries[block] @ chunk.T
            if not first:
                values[block], rows[block] = _first_largest(similarity, k)
            else:
                _merge(values[block], rows[block], similarity, first)
            del similarity  # before the next one is made
    return values, rows


def _merge(values: Tensor, rows: Tensor, similarity: Tensor, first: int) -> None:
    """Takes into values and rows (M, k) what is larger among similarity (M, C), the columns of rows first, first + 1, …

    A later column that only equals the k-th is not nearer. So few columns are left, and only those are sorted.
    """
    k = values.shape[1]
    query, column = (similarity > values[:, -1:]).nonzero(as_tuple=True)
    if not len(query):
        return
    changed, counts = query.unique_consecutive(return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    place = torch.arange(len(query), device=query.device) - starts
    line = torch.arange(len(changed), device=query.device).repeat_interleave(counts)
    wide = values.new_full((len(changed), k + int(counts.max())), -torch.inf)
    origin = rows.new_zeros(wide.shape)
    wide[:, :k], origin[:, :k] = values[changed], rows[changed]
    wide[line, k + place] = similarity[query, column]
    origin[line, k + place] = column + first
    values[changed], order = _first_largest(wide, k)
    rows[changed] = origin.gather(1, order)


def _first_largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """topk in which earlier columns win ties and come first; torch.topk defines neither."""
    values, indices = similarity.topk(k, dim=1)
    tied = (similarity >= values[:, -1:]).sum(dim=1) > k
    if tied.any():
        ordered, order = similarity[tied].sort(dim=1, descending=True, stable=True)
        values[tied], indices[tied] = ordered[:, :k], order[:, :k]
    indices, order = indices.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def _votes(values: Tensor, targets: Tensor, n_classes: int, temperature: float) -> Tensor:
    """(M, k) cosines and classes of the neighbours -> (M, classes) float64 votes."""
    weights = (values / temperature).exp().double()
    return weights.new_zeros(len(values), n_classes).scatter_add_(1, targets, weights)


def _top1_top5(rank: Tensor, k: int) -> list[float]:
    """Percentages; as in the original, top-5 is the first min(5, k)."""
    return [100 * (rank < places).double().mean().item() for places in (1, min(5, k))]


def _rank_of_label(votes: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """(M,) int64: how many classes come before the true one; more than all classes where the true one is unknown."""
    position = class_positions(classes, labels)
    own = votes.gather(1, position.clamp(min=0)[:, None])
    earlier = torch.arange(len(classes), device=votes.device) < position[:, None]
    rank = ((votes > own) | ((votes == own) & earlier)).sum(dim=1)
    return torch.where(position >= 0, rank, len(classes) + 5)

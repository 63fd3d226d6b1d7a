"""DINO's weighted k-nearest-neighbour classifier on frozen features, deterministic to the last tie."""

import torch
import torch.nn.functional as F
from torch import Tensor

from a2mim.evaluation.features import check_features, class_positions


def knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    block_bytes: int = 2**28,
) -> dict:
    """Votes of the k most similar training images, each weighted exp(cosine / temperature).

    Ties are settled: of equally similar training images the earlier one is the neighbour, of classes with equal votes
    the smaller label comes first. A test class without training images is simply never right.

    Args:
        train_features, test_features: (N, D) and (M, D) float; normalised to unit length here.
        train_labels, test_labels: (N,) and (M,) int64 >= 0, any values.
        k: neighbours, clamped to the number of training images (the result's "note" then says so).
        temperature: dimensionless, > 0.
        block_bytes: of similarities held at once; changes nothing else.

    Returns:
        "top1" and "top5" in percent, "correct" (M,) bool for top-1, and the constants that decide the numbers. As in
        the original, top-5 looks at the first min(5, k) classes, also at such without a vote.

    Raises:
        ValueError: k or temperature out of range, or features that cannot be judged (see `check_features`).

    Source: https://github.com/facebookresearch/dino, eval_knn.py; differs in accepting any labels and any set sizes.
    """
    check_constants(k, temperature)
    check_features(train_features, train_labels, test_features, test_labels)
    used_k = min(k, len(train_features))
    bank = F.normalize(train_features.float(), dim=1)
    classes, train_targets = torch.unique(train_labels.to(bank.device), return_inverse=True)
    queries = F.normalize(test_features.float(), dim=1).to(bank.device)
    test_labels = test_labels.to(bank.device)
    ranks = []
    rows = max(1, block_bytes // (4 * max(len(bank), len(classes))))
    for block, labels in zip(queries.split(rows), test_labels.split(rows), strict=True):
        votes = _votes(block @ bank.T, train_targets, len(classes), used_k, temperature)
        ranks.append(_rank_of_label(votes, classes, labels))
    rank = torch.cat(ranks).cpu()
    correct = rank == 0
    result = {
        "protocol": "dino-knn",
        "top1": 100 * correct.double().mean().item(),
        "top5": 100 * (rank < min(5, used_k)).double().mean().item(),
        "k": used_k,
        "temperature": temperature,
        "n_train": len(train_features),
        "n_test": len(test_features),
        "n_classes": len(classes),
        "correct": correct,
    }
    if used_k < k:
        result["note"] = f"k was {k}; the training set has only {used_k} images, so k = {used_k}"
    return result


def check_constants(k: int, temperature: float) -> None:
    if k < 1 or not temperature > 0:
        raise ValueError(f"k={k} and temperature={temperature} were given: k must be at least 1, temperature above 0.")


def _votes(similarity: Tensor, targets: Tensor, n_classes: int, k: int, temperature: float) -> Tensor:
    """(M, N) cosines -> (M, classes) float64 votes."""
    values, neighbours = _first_largest(similarity, k)
    weights = (values / temperature).exp().double()
    return weights.new_zeros(len(similarity), n_classes).scatter_add_(1, targets[neighbours], weights)


def _first_largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """topk, but where values tie at the border the earlier columns win; torch.topk leaves that open."""
    values, indices = similarity.topk(k, dim=1)
    tied = (similarity >= values[:, -1:]).sum(dim=1) > k
    if tied.any():
        ordered, order = similarity[tied].sort(dim=1, descending=True, stable=True)
        values[tied], indices[tied] = ordered[:, :k], order[:, :k]
    return values, indices


def _rank_of_label(votes: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """(M,) int64: how many classes come before the true one; more than all classes where the true one is unknown."""
    position = class_positions(classes, labels)
    own = votes.gather(1, position.clamp(min=0)[:, None])
    earlier = torch.arange(len(classes), device=votes.device) < position[:, None]
    rank = ((votes > own) | ((votes == own) & earlier)).sum(dim=1)
    return torch.where(position >= 0, rank, len(classes) + 5)

"""Images that repeat one another: exact copies by a checksum, near ones by a perceptual hash, of the test view."""

import math

import numpy as np
import torch
from torch import Tensor

NEAR = 4  # of the 63 bits of the lowest frequencies: recompressed or resized copies differ in fewer
ALIKE = 48  # of the 192 bits of the next ones, which tell smooth pictures apart; strangers differ in about 96
_BANDS = (13, 13, 13, 13, 11)  # one more than NEAR: two hashes that near agree in a whole band
_SIDE, _LOW, _MORE = 32, 8, 16
_FLAT = 2.0  # deviation in grey levels, of 255: below it a hash is noise
_NONE = 0  # the hash of an image too flat to have one
_PAIRS_AT_ONCE = 2**22


def signatures(images: Tensor) -> Tensor:
    """(B, 5) int64, on the CPU: checksum of all values, 63 bits of the lowest frequencies, 192 bits of the next.

    The checksum is multilinear modulo 2^64, which every device computes alike. A bit is the sign of a frequency of the
    picture in grey at 32 px, against the median of its group (the DCT hash of C. Zauner, 2010).

    Args:
        images: (B, C, H, W), as the loader gives them.
    """
    grey = images.float().mean(dim=1, keepdim=True)
    depth = {torch.uint8: 255, torch.uint16: 65535}.get(images.dtype)
    flat = grey.std(dim=(1, 2, 3), correction=0) <= (0 if depth is None else _FLAT * depth / 255)
    small = torch.nn.functional.adaptive_avg_pool2d(grey, _SIDE)[:, 0]
    places = torch.arange(_SIDE, dtype=torch.float32, device=images.device)
    basis = torch.cos(math.pi / _SIDE * (places + 0.5) * places[:_MORE, None])
    frequencies = basis @ small @ basis.T
    low = torch.zeros(_MORE, _MORE, dtype=torch.bool, device=images.device)
    low[:_LOW, :_LOW] = True
    lowest = torch.where(flat, _NONE, _bits(frequencies[:, low][:, 1:])[:, 0])
    return torch.cat([_checksums(images)[:, None], lowest[:, None], _bits(frequencies[:, ~low])], dim=1).cpu()


def _bits(values: Tensor) -> Tensor:
    """(B, n) -> (B, ceil(n / 64)) int64: which values are above their median."""
    above = (values > values.median(dim=1, keepdim=True).values).long()
    words = above.split(64, dim=1)
    return torch.stack([(word << torch.arange(word.shape[1], device=word.device)).sum(dim=1) for word in words], dim=1)


def _checksums(images: Tensor) -> Tensor:
    values = images.flatten(1)
    if values.is_floating_point():
        values = values.float().view(torch.int32)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (values.shape[1],), generator=generator) * 2 + 1
    weights = weights.to(values.device)
    return torch.stack([(row.long() * weights).sum() for row in values])


def find_overlap(train: np.ndarray, test: np.ndarray) -> dict[str, list[tuple[int, int]]]:
    """{"exact": [(test row, train row), …], "near": …}: for each test image one training image, if there is any.

    Args:
        train, test: (N, 5) and (M, 5) int64 of `signatures`.
    """
    exact = _first_equal(train[:, 0], test[:, 0])
    rest = np.setdiff1d(np.arange(len(test)), [row for row, _ in exact])
    rest = rest[test[rest, 1] != _NONE]
    pool = np.flatnonzero(train[:, 1] != _NONE)
    near = _nearest(train[pool, 1:], test[rest, 1:])
    return {"exact": exact, "near": [(int(rest[i]), int(pool[j])) for i, j in near]}


def find_repeats(found: np.ndarray) -> dict[str, list[tuple[int, int]]]:
    """{"exact": [(row, other row), …], "near": …}: for each image of one set another one, if there is any.

    Args:
        found: (N, 5) int64 of `signatures`.
    """
    order = np.argsort(found[:, 0], kind="stable")
    exact = []
    for rows in np.split(order, np.flatnonzero(np.diff(found[order, 0])) + 1):
        exact += [(int(row), int(rows[1] if row == rows[0] else rows[0])) for row in rows if len(rows) > 1]
    pool = np.flatnonzero(found[:, 1] != _NONE)
    rest = pool[~np.isin(pool, [row for row, _ in exact])]
    near = _nearest(found[pool, 1:], found[rest, 1:], np.searchsorted(pool, rest))
    return {"exact": sorted(exact), "near": [(int(rest[i]), int(pool[j])) for i, j in near]}


def find_contradictions(
    train: np.ndarray, test: np.ndarray, train_labels: np.ndarray, test_labels: np.ndarray
) -> list[tuple[int, int]]:
    """(test row, train row) of test images that are training images too, but have a different label in every such copy.

    Images of one colour are left out: two of them may well show different things.

    Args:
        train, test: (N, 5) and (M, 5) int64 of `signatures`; labels: (N,) and (M,) int64.
    """
    order = np.argsort(train[:, 0], kind="stable")
    checksums = train[order, 0]
    starts, ends = np.searchsorted(checksums, test[:, 0], "left"), np.searchsorted(checksums, test[:, 0], "right")
    found = []
    for row in np.flatnonzero((ends > starts) & (test[:, 1] != _NONE)):
        same = order[starts[row] : ends[row]]
        if (train_labels[same] != test_labels[row]).all():
            found.append((int(row), int(same[0])))
    return found


def _first_equal(train: np.ndarray, test: np.ndarray) -> list[tuple[int, int]]:
    values, first = np.unique(train, return_index=True)
    if not len(values):
        return []
    place = np.searchsorted(values, test).clip(max=len(values) - 1)
    return [(int(row), int(first[place[row]])) for row in np.flatnonzero(values[place] == test)]


def _nearest(train: np.ndarray, test: np.ndarray, itself: np.ndarray | None = None) -> list[tuple[int, int]]:
    """Pairs at most NEAR and ALIKE bits apart, one per test row; compares only pairs that agree in a band.

    Args:
        itself: (M,) the training row that is the same image as each test row; these are no pairs.
    """
    best: dict[int, tuple[int, int]] = {}
    shift = 0
    for width in _BANDS:
        ours, theirs = ((hashes >> shift) & ((1 << width) - 1) for hashes in (train[:, 0], test[:, 0]))
        shift += width
        order = np.argsort(ours, kind="stable")
        ours = ours[order]
        starts, ends = np.searchsorted(ours, theirs, "left"), np.searchsorted(ours, theirs, "right")
        for rows in _by_pairs(ends - starts):
            counts = ends[rows] - starts[rows]
            queries = np.repeat(rows, counts)
            offsets = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
            found = order[np.repeat(starts[rows], counts) + offsets]
            distance = _ones(test[queries, :1] ^ train[found, :1])
            close = (distance <= NEAR) if itself is None else (distance <= NEAR) & (found != itself[queries])
            queries, found, distance = queries[close], found[close], distance[close]
            more = _ones(test[queries, 1:] ^ train[found, 1:])
            for i in np.flatnonzero(more <= ALIKE):
                pair = (int(distance[i]), int(found[i]))
                best[int(queries[i])] = min(pair, best.get(int(queries[i]), pair))
    return [(row, found) for row, (_, found) in sorted(best.items())]


def _ones(words: np.ndarray) -> np.ndarray:
    """(N, n) int64 -> (N,) how many bits are 1; numpy 1 has no bitwise_count."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words.view(np.uint64)).sum(axis=1, dtype=np.int64)
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1).sum(axis=1, dtype=np.int64)


def _by_pairs(counts: np.ndarray) -> list[np.ndarray]:
    """Consecutive rows, in groups of about _PAIRS_AT_ONCE pairs."""
    groups = (counts.cumsum() // _PAIRS_AT_ONCE).astype(np.int64)
    return [rows for rows in np.split(np.arange(len(counts)), np.flatnonzero(np.diff(groups)) + 1) if len(rows)]


def overlap_sentence(found: dict, name_of_test, name_of_train) -> str:
    """A warning, or "": counts, and the first names of each kind."""
    words = {"exact": "are also in the training set", "near": "are nearly the same as a training image"}
    told = []
    for kind, pairs in found.items():
        if pairs:
            names = "; ".join(f"{name_of_test(i)} = {name_of_train(j)}" for i, j in pairs[:3])
            told.append(f"{len(pairs)} test images {words[kind]} ({names}{'; …' if len(pairs) > 3 else ''})")
    return " and ".join(told)

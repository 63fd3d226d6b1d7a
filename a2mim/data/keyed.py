"""Randomness without state: every number is a pure function of (seed, epoch, sample key, draw).

There is no state to save or to share between processes. The number of workers, their start method and a resume cannot
change a sample. The hash is splitmix64 (Steele et al., 2014, https://doi.org/10.1145/2714064.2660195). It is written
out here because numpy does not promise that its generators give the same numbers in the next version.
"""

import hashlib

import numpy as np

# Each purpose has a stream of its own, so that its draws are independent of the others.
CROP, REPLACEMENT, ORDER, PHOTOGRAPH, COPY, ERASING = range(6)


def uniforms(seed: int, epoch: int, keys: np.ndarray, draws: int, stream: int = CROP) -> np.ndarray:
    """(N,) uint64 keys -> (N, draws) float64 in [0, 1)."""
    return (hashes(seed, epoch, keys, draws, stream) >> np.uint64(11)) * 2.0**-53


def hashes(seed: int, epoch: int, keys: np.ndarray, draws: int, stream: int = CROP) -> np.ndarray:
    """(N,) uint64 keys -> (N, draws) uint64, uniform over all 64 bits."""
    base = np.zeros(1, np.uint64)
    for number in (seed, epoch, stream):
        base = _mix(base ^ np.uint64(int(number) & 0xFFFFFFFFFFFFFFFF))
    rows = _mix(np.asarray(keys, np.uint64) ^ base)
    columns = np.arange(draws, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
    return _mix(rows[:, None] + columns[None, :])


def key_of(name: str) -> int:
    """The key of a sample: 64 bits of BLAKE2b of its name. It does not change when the data is moved."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

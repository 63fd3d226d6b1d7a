"""Loaders of small images, and checksums by which two streams of batches are compared."""

import hashlib

from a2mim.data import TrainLoader


def loader(dataset, batch=8, **options) -> TrainLoader:
    """Crops of 16 px, in batches of 8 unless said otherwise."""
    return TrainLoader(dataset, 16, batch, **options)


def digest(batch: dict) -> str:
    """A checksum of all tensors of a batch."""
    parts = (batch[name].contiguous().numpy().tobytes() for name in ("images", "labels", "ids"))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def stream(source, epochs: int = 2) -> list[str]:
    """The checksums of the batches of some epochs."""
    return [digest(batch) for _ in range(epochs) for batch in source]

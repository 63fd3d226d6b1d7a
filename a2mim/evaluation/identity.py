"""Identity of cached features and results: hashes of the weights, the data, and the settings of the view."""

import hashlib
import json
import os

import torch
from torch import nn

from a2mim.data import ImageDataset


def hash_of(content) -> str:
    """16 hexadecimal digits of plain values."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def hash_encoder(model: nn.Module, **arguments) -> str:
    """16 hexadecimal digits of every tensor of the state dictionary, and of the plain `arguments` it was built from.

    Equal weights are not enough: the number of heads or the image size change what they compute.
    """
    digest = hashlib.blake2b(hash_of([type(model).__name__, arguments]).encode(), digest_size=8)
    for key, value in sorted(model.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def stamp_of(dataset: ImageDataset) -> str:
    """Hash of the sizes and times of the files behind a set: `fingerprint` knows names, and a file may be replaced.

    The same for every set whose files have no size and time to read (remote shards, data made in memory).
    """
    root = getattr(dataset.store, "root", "")
    digest = hashlib.blake2b(digest_size=8)
    for path in getattr(dataset.store, "paths", ()):
        try:
            status = os.stat(os.path.join(root, path))
        except (OSError, TypeError, ValueError):
            continue
        digest.update(f"{status.st_size} {status.st_mtime_ns},".encode())
    return digest.hexdigest()

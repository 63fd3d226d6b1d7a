"""Separates what a file may say about its network from what only the user may say.

Invariant: a name in a file is looked up in timm's table of models. Only a dotted path that the user typed is imported,
and only a hub address that the user typed is opened. Numbers and words in a file are checked before anything is built
from them. A file beside a receipt is compared with the hash in the receipt.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from a2mim.pixels import INTERPOLATIONS
from a2mim.wiring.plain_arguments import LARGEST, fault_of_argument, fault_of_own_argument, shorten
from a2mim.wiring.timm_models import is_registered

MOST_CHANNELS = 4096
_GREATEST = 1e30  # number in a file
BLOCK = 1 << 20  # bytes that are hashed at a time


def settle_name(stated: object, typed: str | None, path: Path) -> str:
    """The architecture to build: the file's, if timm knows it or the user typed the same.

    Args:
        stated: the name in the file.
        typed: the name that the user gave before the file, or that the recipe gave; None for none.

    Raises:
        ValueError: the file names code to import, an address, or another network than the user.
    """
    if is_registered(stated):
        assert isinstance(stated, str)
        if typed in (None, stated):
            return stated
        raise ValueError(f"{path} is a checkpoint of {stated}, not of {typed}: leave {typed}: out.")
    if typed is not None and (stated == typed or is_registered(typed)):
        return typed
    if typed is not None:
        raise ValueError(f"{path} holds the weights of {shorten(stated)}, not of {typed}.")
    target = path.parent if path.name == "config.json" else path
    raise ValueError(
        f"{path} names the network {shorten(stated)}, which is not in timm's table of models, and a file may not choose"
        " code to import or an address to open: if you trust it, name the network yourself by its dotted path, as"
        f" my_package.MyNet:{target}."
    )


def check_arguments(name: str, arguments: object, path: Path) -> dict[str, Any]:
    """The constructor arguments in a file, if a file may set all of them.

    Raises:
        ValueError: it may not set one of them.
    """
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{path} has model_args={shorten(arguments)}, which is no dictionary.")
    judge = fault_of_argument if is_registered(name) else fault_of_own_argument
    for key, value in arguments.items():
        if fault := judge(key, value):
            raise ValueError(
                f"{path} sets {fault}: a file may set only numbers and plain words for known arguments. If you trust"
                f' it, give this argument yourself, in Python: load_encoder("{name}:FILE", …) on its file of weights.'
            )
    return dict(arguments)


def check_pixels(pixels: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """mean, std, interpolation and sizes in a file, if they are plain and usable.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(pixels, Mapping):
        raise ValueError(f"{path} has {shorten(pixels)} instead of mean, std and sizes of its images.")
    faults = {
        "mean": lambda value: not _numbers(value, MOST_CHANNELS),
        "std": lambda value: not _numbers(value, MOST_CHANNELS) or min(value) <= 0,
        "interpolation": lambda value: value not in INTERPOLATIONS,
        "img_size": lambda value: not _sizes([value, value] if isinstance(value, int) else value, 2),
        "input_size": lambda value: not _sizes(value, 3),
    }
    for key, wrong in faults.items():
        if pixels.get(key) is not None and wrong(pixels[key]):
            raise ValueError(f"{path} has {key}={shorten(pixels[key])}, with which no image can be prepared.")
    mean, std = pixels.get("mean"), pixels.get("std")
    if mean is not None and std is not None and len(mean) != len(std):
        raise ValueError(f"{path} has {len(mean)} values of mean and {len(std)} of std: there must be one a channel.")
    return pixels


def check_channels(channels: object, path: Path) -> int:
    """The number of an encoder's channels in a file."""
    if isinstance(channels, bool) or not isinstance(channels, int) or not 0 < channels <= MOST_CHANNELS:
        raise ValueError(f"{path} has in_chans={shorten(channels)}, which is no number of channels.")
    return channels


def check_tensors(state: object, path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The entries of a state dictionary in a file whose names begin with `prefix`: ordinary tensors in memory, neither
    sparse nor quantised. What else the file holds, such as the networks of a target, is left out.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} has {shorten(state)} instead of a state dictionary.")
    chosen = {key: value for key, value in state.items() if not isinstance(key, str) or key.startswith(prefix)}
    for key, value in chosen.items():
        plain = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
        if not isinstance(key, str) or not plain or value.is_quantized:
            raise ValueError(f"{path} has {shorten(value)} under {shorten(key)} instead of a tensor.")
    return chosen


def check_names(names: object, path: Path) -> list[str]:
    """A list of names of parameters in a checkpoint or a receipt."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} has {shorten(names)} instead of the names of frozen parameters.")
    return list(names)


def check_hashes(folder: Path, receipt: Mapping[str, Any], names: Iterable[str]) -> None:
    """Compares files with the sha256 in the receipt beside them. Files that the receipt does not name are not checked.

    Raises:
        ValueError: a file is not the one that the receipt was written for.
    """
    stated = receipt.get("sha256")
    for name in names:
        if not isinstance(stated, Mapping) or name not in stated:
            continue
        if hash_file(folder / name) != stated[name]:
            raise ValueError(
                f"{folder / name} is not the file that {folder / 'receipt.json'} was written for (another sha256): it"
                " is damaged or was changed. Export the encoder again; if you changed it yourself, delete the receipt."
            )


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fault_of_values(tensors: Mapping[str, Tensor]) -> str:
    """Names tensors that are not finite, as a part of a sentence; "" if all are finite."""
    wrong = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if not wrong:
        return ""
    return f"{len(wrong)} of {len(tensors)} tensors are not finite (NaN or infinity), the first is {wrong[0]}"


def _numbers(values: object, most: int) -> bool:
    if not isinstance(values, list | tuple) or not 0 < len(values) <= most:
        return False
    return all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= _GREATEST for v in values)


def _sizes(values: object, count: int) -> bool:
    if not isinstance(values, list | tuple) or len(values) != count:
        return False
    return all(isinstance(v, int) and not isinstance(v, bool) and 0 < v <= LARGEST for v in values)

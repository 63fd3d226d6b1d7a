"""Tar shards as a data set: indexed and labelled. Unusable shards are refused with one sentence."""

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from a2mim.data.access import DEFAULT, Access
from a2mim.data.dataset import ImageDataset
from a2mim.data.errors import ShardError, make_cache_folder
from a2mim.data.plain_files import LONGEST_TEXT, read_class_list
from a2mim.data.remote.addresses import public_name
from a2mim.data.remote.origins import origin_of
from a2mim.data.remote.retry import persist
from a2mim.data.remote.transfer import Bounded
from a2mim.data.shards.index import NONE
from a2mim.data.shards.index_file import cached_path
from a2mim.data.shards.indexing import Shard, index_all, look_at
from a2mim.data.shards.labels import LabelsDisagree, resolve
from a2mim.data.shards.tar_store import TarStore
from a2mim.data.splits import split_classes
from a2mim.files import replacing
from a2mim.text import shortened


def open_shards(addresses: list[str], title: str, access: Access = DEFAULT) -> ImageDataset:
    """Indexes shards (paths and URLs). Refuses missing, damaged and repeated shards, and a set without images.

    With `access.skip_bad_shards`, missing and damaged shards are left out and named in `skipped` of the result.
    """
    title = public_name(title)
    if not addresses:
        raise ValueError("an empty list of shards was given; name at least one")
    if len(set(addresses)) < len(addresses):
        twice = next(address for address in addresses if addresses.count(address) > 1)
        raise ValueError(f"the shard {public_name(twice)!r} is named more than once; its images would be too")
    shards = look_at(addresses, access)
    if not access.skip_bad_shards:
        refuse_missing(shards)
    index_all(shards, access)
    skipped = [str(shard.fault) for shard in shards if shard.fault is not None]
    if skipped and (not access.skip_bad_shards or len(skipped) == len(shards)):
        _refuse_damaged(shards)
    shards = [shard for shard in shards if shard.fault is None]
    sizes = np.array([len(shard.indexed.samples) for shard in shards], np.int64)
    if not sizes.sum():
        raise ValueError(
            f"no images in {title!r}: a sample is a member such as 000001.jpg, with its label in 000001.cls"
        )
    labels, names, fault = _labels(shards, access)
    keys, offsets, lengths = (
        np.concatenate([shard.indexed.samples[column] for shard in shards]) for column in ("key", "offset", "size")
    )
    duplicates = sum(shard.indexed.duplicates for shard in shards)
    incomplete = sum(shard.indexed.incomplete for shard in shards)
    unchecked, odd_labels, lost = (
        sum(getattr(shard.index, count) for shard in shards) for count in ("unchecked", "odd_labels", "lost")
    )
    _tell(title, skipped, unchecked, fault, _folders(shards))
    for shard in shards:
        shard.index = None  # no longer needed; frees its memory
    store = TarStore(shards, np.cumsum(sizes), offsets, lengths, _decided(access, shards))
    dataset = ImageDataset(store, title, keys, labels, sizes, names, duplicates=duplicates)
    dataset.skipped, dataset.incomplete, dataset.unchecked = tuple(skipped), incomplete, unchecked
    dataset.odd_labels, dataset.lost, dataset.label_fault = odd_labels, lost, fault
    return dataset


def _labels(shards: list[Shard], access: Access) -> tuple[np.ndarray, list[str] | None, str]:
    """(labels, class names, why the labels are not used). Pre-training can use a set whose labels disagree."""
    try:
        return *resolve([shard.indexed for shard in shards], _listed_classes(shards[0], access)), ""
    except LabelsDisagree as error:
        return np.full(sum(len(shard.indexed.samples) for shard in shards), NONE, np.int64), None, str(error)


def _folders(shards: list[Shard]) -> list[str]:
    """The first-level folders of the images in all shards, sorted."""
    folders: set[str] = set()
    for shard in shards:
        if shard.index is not None:
            used = np.unique(shard.index.samples["folder"])
            folders.update(shard.index.texts[number] for number in used[used >= 0])
    return sorted(folders)


def _tell(title: str, skipped: list[str], unchecked: int, fault: str, folders: list[str]) -> None:
    """Warns about what is left out or unchecked, in every command."""
    if said := split_classes(folders, "folders"):
        warnings.warn(f"{title}: {said}", stacklevel=4)
    if fault:
        warnings.warn(f"{title}: no labels are used: {fault}", stacklevel=4)
    if skipped:
        warnings.warn(f"{title}: {len(skipped)} bad shards are left out: {_few(skipped)}", stacklevel=4)
    if unchecked:
        said = f"the index of {unchecked} shards came from DALI and was not verified; remove their .index.npz to check"
        warnings.warn(f"{title}: {said}", stacklevel=4)


def refuse_missing(shards: list[Shard]) -> None:
    """FileNotFoundError that names the first missing shards."""
    missing = [shard.name for shard in shards if isinstance(shard.fault, FileNotFoundError)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} shards missing: {_few(missing)}; give a folder, tar shards, a URL or"
            " 'photos', or leave them out with --skip-bad-shards"
        )


def _refuse_damaged(shards: list[Shard]) -> None:
    faults = [shard.fault for shard in shards if shard.fault is not None]
    if len(shards) == 1:
        raise faults[0]
    said = "; ".join(str(fault) for fault in faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    raise type(faults[0])(
        f"{len(faults)} of {len(shards)} shards cannot be used (--skip-bad-shards leaves them out): {said}"
    )


def _decided(access: Access, shards: list[Shard]) -> Access:
    """Resolves remote="auto". Shards that do not fit into the cache together would be fetched again in each epoch."""
    if access.remote != "auto":
        return access
    total = sum(shard.size or 0 for shard in shards if shard.stat is not None)
    return replace(access, remote="shards" if total <= access.cache_bytes else "ranges")


def _listed_classes(shard: Shard, access: Access) -> list[str] | None:
    """classes.txt beside the first shard, with one name per line; None if there is none."""
    folder, slash, _ = shard.address.rpartition("/")
    if shard.address.startswith("pipe:") or (shard.stat is not None and "?" in shard.address):
        return None
    beside = f"{folder}{slash}classes.txt"
    listed = Path(beside) if shard.stat is None else _fetched_text(beside, access)
    return read_class_list(listed) if listed.exists() else None


def _fetched_text(address: str, access: Access) -> Path:
    """The path of the copy of a small remote file; it does not exist if the server has no such file. If the server does
    not answer, an earlier copy is used.
    """
    path, content = cached_path(address, access).with_suffix(".txt"), io.BytesIO()
    try:
        origin = origin_of(address, access)
        bounded = Bounded(content, LONGEST_TEXT, address)
        persist(lambda: origin.download(bounded), access, content.tell)
        make_cache_folder(path.parent)
        with replacing(path, "wb") as file:
            file.write(content.getvalue())
    except FileNotFoundError:
        path.unlink(missing_ok=True)
    except ShardError:
        pass
    return path


def _few(names: list[str]) -> str:
    return ", ".join(map(shortened, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

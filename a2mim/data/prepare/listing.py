"""Lists the content of shards, and makes their indices before a run."""

import os
from collections.abc import Iterator
from typing import Any

from a2mim.data.access import Access
from a2mim.data.errors import ShardError
from a2mim.data.names import escaped
from a2mim.data.remote.addresses import is_remote, public_name
from a2mim.data.shards import dali
from a2mim.data.shards.indexing import Shard, index_all, look_at, paths_of
from a2mim.data.shards.tar_shards import refuse_missing
from a2mim.data.sources import expand


def indexed(pattern, access: Access) -> list[Shard]:
    """The shards, each with an index or a fault; FileNotFoundError if any is missing."""
    shards = look_at(expand(pattern, access), access)
    refuse_missing(shards)
    index_all(shards, access)
    return shards


def describe_shards(shards: list[Shard]) -> Iterator[str]:
    """Yields a line for each shard, and one for all."""
    for shard in shards:
        if shard.fault is not None:
            yield f"damaged  {shard.fault}"
            continue
        facts = facts_of(shard)
        notes = [f"{facts['duplicates']} duplicates"] if facts["duplicates"] else []
        notes += [f"{facts['incomplete']} without an image"] if facts["incomplete"] else []
        notes += ["headers unchecked"] if facts["unchecked"] else []
        size = f"{facts['bytes'] / 1e6:10,.1f} MB"
        yield f"{facts['images']:8,} images {facts['labelled']:8,} labelled {size}  {', '.join([shard.name, *notes])}"
    good = [shard for shard in shards if shard.fault is None]
    images = sum(len(shard.indexed.samples) for shard in good)
    megabytes = sum(shard.size or 0 for shard in good) / 1e6
    yield f"{images:8,} images in {len(good)} of {len(shards)} shards, {megabytes:,.1f} MB"


def facts_of(shard: Shard) -> dict[str, Any]:
    """What the index of a shard says, for scripts; of a damaged one its name and the fault."""
    if shard.fault is not None:
        return {"name": shard.name, "fault": str(shard.fault)}
    index = shard.indexed
    labelled = int(((index.samples["label"] >= 0) | (index.samples["name"] >= 0)).sum())
    return {
        **{"name": shard.name, "images": len(index.samples), "labelled": labelled, "bytes": shard.size or 0},
        **{"duplicates": index.duplicates, "incomplete": index.incomplete, "unchecked": bool(index.unchecked)},
    }


def samples_of(shards: list[Shard], access: Access) -> Iterator[dict[str, Any]]:
    """Yields shard, key, label (a number, a name or None) and bytes of each image."""
    for shard in shards:
        if shard.fault is not None:
            continue
        texts = [*shard.indexed.texts, ""]
        for key, sample in zip(shard.keys(access), shard.indexed.samples, strict=True):
            label = int(sample["label"]) if sample["label"] >= 0 else texts[sample["name"]] or None
            yield {"shard": shard.name, "key": key, "label": label, "bytes": int(sample["size"])}


def describe_sample(facts: dict[str, Any]) -> str:
    """The line for an image: shard, key, label, bytes."""
    label = "-" if facts["label"] is None else facts["label"]
    return f"{facts['shard']}\t{escaped(facts['key'])}\t{label}\t{facts['bytes']}"


def export_dali(pattern, access: Access) -> list[str]:
    """Writes DALI's index beside each local shard; returns their paths."""
    return [dali.export_index(address) for address in _local(pattern, access)]


def import_dali(pattern, access: Access) -> list[Shard]:
    """Shards indexed from DALI's files; ShardError if an index is missing or does not fit."""
    shards = []
    for address in _local(pattern, access):
        try:
            index = dali.import_index(address, access)
        except FileNotFoundError as error:
            raise ShardError(f"{error.filename}: there is no such index; wds2idx makes it") from None
        shards.append(Shard(address, os.path.getsize(address), index=index))
    return shards


def _local(pattern, access: Access) -> list[str]:
    addresses = expand(pattern, access)
    away = [address for address in addresses if is_remote(address)]
    if away:
        raise ValueError(f"{public_name(away[0])} is remote; DALI's indices are read and written beside local shards")
    refuse_missing(look_at(addresses, access))
    return addresses


def where(shard: Shard, access: Access) -> str:
    """The path of the cached index; "" if no folder could be written to."""
    return next((str(path) for path in paths_of(shard, access) if path.exists()), "")

"""Addresses of shards: which of them are remote, and what file name each stands for. Nothing is opened here."""

import os
import re
from urllib.parse import unquote, urlsplit

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def is_remote(shard: str) -> bool:
    return shard.startswith("pipe:") or (scheme_of(shard) not in (None, "file"))


def scheme_of(address: str) -> str | None:
    found = _SCHEME.match(address)
    return found.group(1).lower() if found else None


def local_path(shard: str) -> str:
    """A path as it is, and that of a file:// URL."""
    return unquote(urlsplit(shard).path) if scheme_of(shard) == "file" else shard


def base_name(address: str) -> str:
    """The file name of a shard: a part of its samples' keys, so the same wherever the shard is reached."""
    if address.startswith("pipe:"):
        names = re.findall(r"([\w.-]+\.tar)\b", address)
        return names[-1] if names else re.sub(r"\W+", "_", address)[-64:]
    return os.path.basename(urlsplit(address).path if is_remote(address) else address) or "shard.tar"

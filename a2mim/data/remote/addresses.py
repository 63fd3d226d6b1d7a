"""Addresses of shards: which are remote, what file name and what public name each has. Nothing is opened here."""

import os
import re
from urllib.parse import unquote, urlsplit

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


_LOGIN = re.compile(r"(?<=://)[^/?#\s]*@")  # user:password@
_BROKEN_HOST = re.compile(r"(?<=://)[^/?#\s'\"]*:(?!\d*(?:[/:?#\s'\",;)\]]|$))[^\s]*")  # a password cut by / ? or #
_QUERY = re.compile(r"(\bhttps?://[^\s?#'\"]*)[?#][^\s'\",;)\]]*?(?=[:.]?(?:[\s'\",;)\]]|$))", re.IGNORECASE)
_PAIRS = re.compile(r"(://[^\s?'\"]*)\?[\w.%~-]+=[^\s'\",;)\]]*?(?=[:.]?(?:[\s'\",;)\]]|$))")
_SECRET = re.compile(
    r"(?i)\b(authorization|bearer|token|secret|password|passwd|[\w-]*key)\b([=:]\s*|\s+)(?:bearer\s+|basic\s+)?[^\s'\"]+"
)


def public_name(text: str) -> str:
    """An address, or a sentence with addresses, as it may be shown, logged and written.

    Of URLs the user, the password, the query and the fragment are left out: a query may be a signature. In the command
    of a `pipe:` source, what follows words such as token, password or Authorization is left out too.
    """
    text = _BROKEN_HOST.sub("…", _LOGIN.sub("", text))
    text = _PAIRS.sub(r"\1", _QUERY.sub(r"\1", text))
    return _SECRET.sub(r"\1\2…", text) if "pipe:" in text else text


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

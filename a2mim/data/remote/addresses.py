"""Addresses of shards: which are remote, and each one's file name and public name. Nothing is opened here."""

import os
import re
from urllib.parse import unquote, urlsplit

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


_LOGIN = re.compile(r"(?<=://)[^/?#\s]*@")  # user:password@
_BROKEN_HOST = re.compile(r"(?<=://)[^/?#\s'\"]*:(?!\d*(?:[/:?#\s'\",;)\]]|$))[^\s]*")  # a password cut by / ? or #
_QUERY = re.compile(r"(\bhttps?://[^\s?#'\"]*)[?#][^\s'\",;)\]]*?(?=[:.]?(?:[\s'\",;)\]]|$))", re.IGNORECASE)
_PAIRS = re.compile(r"(://[^\s?'\"]*)\?[\w.%~-]+=[^\s'\",;)\]]*?(?=[:.]?(?:[\s'\",;)\]]|$))")
_PARAMETERS = re.compile(r"(\bhttps?://[^\s;'\"]*);[\w.%~-]+=[^\s'\",)\]]*", re.IGNORECASE)  # ;name=value in a path
_USER = re.compile(r"((?:^|\s)(?:-u|--user|--proxy-user)(?:=|\s*))[^\s'\"]*:[^\s'\"]*")  # curl's -u name:password
_SECRET = re.compile(
    r"(?i)\b(authorization|bearer|token|secret|password|passwd|[\w-]*key)\b([=:]\s*|\s+)(?:bearer\s+|basic\s+)?[^\s'\"]+"
)


def public_name(text: str) -> str:
    """An address, or a sentence with addresses, without secrets, so that it may be shown, logged and written.

    User, password, query and fragment of URLs are removed, because a query may be a signature. In a `pipe:` command,
    words after names such as token, password or Authorization are removed too.
    """
    text = _BROKEN_HOST.sub("…", _LOGIN.sub("", text))
    text = _PARAMETERS.sub(r"\1", _PAIRS.sub(r"\1", _QUERY.sub(r"\1", text)))
    return _USER.sub(r"\1…", _SECRET.sub(r"\1\2…", text)) if "pipe:" in text else text


def is_remote(shard: str) -> bool:
    return shard.startswith("pipe:") or (scheme_of(shard) not in (None, "file"))


def scheme_of(address: str) -> str | None:
    match = _SCHEME.match(address)
    return match.group(1).lower() if match else None


def local_path(shard: str) -> str:
    """The path of a file:// URL; other addresses are returned unchanged."""
    return unquote(urlsplit(shard).path) if scheme_of(shard) == "file" else shard


def base_name(address: str) -> str:
    """The file name of a shard. It is part of the samples' keys, so it must not depend on how the shard is reached."""
    if address.startswith("pipe:"):
        names = re.findall(r"([\w.-]+\.tar)\b", address)
        return names[-1] if names else re.sub(r"\W+", "_", address)[-64:]
    return os.path.basename(urlsplit(address).path if is_remote(address) else address) or "shard.tar"

"""Shards behind http(s): fetched whole into the user's cache folder, once, and checked before they get their name."""

import hashlib
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from a2mim.data.shard_index import cache_folder
from a2mim.data.tarfiles import TarError, members

TIMEOUT = 30.0  # seconds without a byte
TRIES = 4
_GONE = (404, 410)
_PASSING = (408, 425, 429, 500, 502, 503, 504)


def is_remote(shard: str) -> bool:
    return shard.startswith(("http://", "https://"))


def exists(url: str) -> bool:
    """True for what is in the cache or what the server has; servers without HEAD are believed to have it."""
    if _place(url).exists():
        return True
    try:
        with _ask(Request(url, method="HEAD")):
            return True
    except HTTPError as error:
        if error.code not in (*_GONE, 405, 501):
            raise OSError(f"{url}: the server answered {error.code} {error.reason}") from None
        return error.code not in _GONE


def fetch(url: str) -> str:
    """The local path of a shard, downloaded when it is not in the cache; raises OSError with URL and status."""
    place = _place(url)
    if place.exists():
        return str(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=place.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            _download(url, file)
        _check(url, part)
        os.replace(part, place)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return str(place)


def _check(url: str, part: str) -> None:
    """A damaged archive, or a web page in its place, must not enter the cache."""
    try:
        for _ in members(part):
            pass
    except TarError as error:
        raise TarError(str(error).replace(part, url)) from None


def _download(url: str, file) -> None:
    for attempt in range(TRIES):
        file.seek(0)
        file.truncate()
        try:
            with _ask(Request(url)) as response:
                length = response.headers.get("Content-Length")
                shutil.copyfileobj(response, file, 1 << 20)
            if length is not None and file.tell() != int(length):
                raise ConnectionError(f"{file.tell()} of {length} bytes came")
            return
        except HTTPError as error:
            raise OSError(f"{url}: the server answered {error.code} {error.reason}") from None
        except OSError as error:
            if attempt == TRIES - 1:
                raise OSError(f"{url}: {error}, after {TRIES} attempts") from None
            time.sleep(0.1 * 2**attempt)


def _ask(request: Request):
    """urlopen; tries again where waiting may help."""
    for attempt in range(TRIES):
        try:
            return urlopen(request, timeout=TIMEOUT)
        except HTTPError as error:
            if error.code not in _PASSING or attempt == TRIES - 1:
                raise
        except URLError as error:
            if attempt == TRIES - 1:
                raise OSError(f"{request.full_url}: {error.reason}") from None
        time.sleep(0.1 * 2**attempt)


def _place(url: str) -> Path:
    """By the whole URL: shards of two data sets may share a base name; which is kept, as sample keys contain it."""
    whole = hashlib.sha256(url.encode()).hexdigest()[:24]
    name = re.sub(r"[^\w.-]+", "_", os.path.basename(urlsplit(url).path)) or "shard.tar"
    return cache_folder() / "shards" / whole / name

"""Shards behind http(s), through urllib3: whole, continued after a broken transfer, or by byte ranges."""

import base64
import binascii
import contextlib
import functools
import io
import os
import re
import urllib.request
import warnings
from typing import BinaryIO
from urllib.parse import urlsplit

import urllib3

from a2mim.data.access import Access
from a2mim.data.errors import ShardError
from a2mim.data.remote.addresses import public_name
from a2mim.data.remote.retry import PassingFault, refuse_unreachable
from a2mim.data.remote.transfer import BLOCK, Stat, Watch, append, refuse_another

_GONE = (404, 410)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_NO_HEAD = (400, 403, 405, 501)  # answers of servers and signed URLs that allow only GET
_NOT_REACHED = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
_CONNECTIONS = 32
_POOLS = 16


class WebFile:
    """One URL."""

    ranges = True
    tag: str | None = None

    def __init__(self, url: str, access: Access):
        self.url, self.timeout = url, access.timeout
        self.version = None  # of the bytes received so far; the rest must come from the same version
        self.name = public_name(url)
        login = urllib3.util.parse_url(url).auth
        self.server = f"{urlsplit(url).scheme}://{urlsplit(url).netloc.rpartition('@')[2]}"
        self.headers = {"Accept-Encoding": "identity"}  # no compression: sizes and offsets must be those of the file
        if login:
            self.headers |= urllib3.util.make_headers(basic_auth=login)

    def stat(self) -> Stat:
        with self._ask("HEAD") as answer:
            status = answer.status
            if status == 200:
                return _stat(answer, answer.headers.get("Content-Length"))
        if status not in _NO_HEAD:
            self._refuse(status, answer)
        with self._ask("GET", {"Range": "bytes=0-0"}) as answer:
            if answer.status == 206:
                return _stat(answer, answer.headers.get("Content-Range", "").rpartition("/")[2])
            if answer.status != 200:
                self._refuse(answer.status, answer)
            return _stat(answer, answer.headers.get("Content-Length"))

    def download(self, file: BinaryIO) -> None:
        start = file.tell()
        rest = {"Range": f"bytes={start}-"} | ({"If-Range": self.version} if self.version else {})
        with self._ask("GET", rest if start else {}) as answer:
            if answer.status in (200, 206):
                tag = answer.headers.get("ETag", "W/")
                self.version = answer.headers.get("Last-Modified") if tag.startswith("W/") else tag
            if start and (answer.status == 416 or not _starts_at(answer, start)):
                file.seek(0)
                file.truncate()
            if answer.status == 416:
                raise PassingFault(f"{self.name}: has become shorter than the {start} bytes that came before")
            if answer.status not in (200, 206):
                self._refuse(answer.status, answer)
            refuse_another(self.name, self.tag, _tag(answer))
            length = answer.headers.get("Content-Length")
            before = file.tell()
            append(file, lambda: answer.read1(BLOCK), Watch(self.name, self.timeout))
        if length is not None and file.tell() - before != int(length):
            raise PassingFault(f"{self.name}: {file.tell() - before} of {length} bytes came")

    def read(self, offset: int, size: int) -> bytes:
        if not size:
            return b""
        with self._ask("GET", {"Range": f"bytes={offset}-{offset + size - 1}"}) as answer:
            if answer.status == 200:
                raise ShardError(f"{self.name}: the server sends no byte ranges; fetch whole shards (remote='shards')")
            if answer.status != 206:
                self._refuse(answer.status, answer)
            refuse_another(self.name, self.tag, _tag(answer))
            content = io.BytesIO()
            append(content, lambda: answer.read1(BLOCK), Watch(self.name, self.timeout))
        data = content.getvalue()
        if len(data) != size or not _starts_at(answer, offset):
            raise PassingFault(f"{self.name}: {len(data)} of {size} bytes came at byte {offset}")
        return data

    @contextlib.contextmanager
    def _ask(self, method: str, headers: dict | None = None):
        """The answer. Network errors, also while the answer is read, become PassingFault."""
        refuse_unreachable(self.server, self.name, self.timeout)
        try:
            answer = _pool(os.getpid(), _proxy(self.url)).request(
                method,
                self.url,
                headers=self.headers | (headers or {}),
                timeout=urllib3.Timeout(connect=self.timeout, read=self.timeout),
                retries=urllib3.Retry(total=5, connect=0, read=0, status=0, other=0),
                preload_content=False,
                decode_content=False,
                enforce_content_length=False,
            )
            try:
                self._tell_redirects(answer)
                yield answer
            finally:
                _leave(answer)
        except urllib3.exceptions.LocationValueError as error:
            raise ValueError(f"{self.name} is no URL: {public_name(str(error))}") from None
        except urllib3.exceptions.HTTPError as error:
            cause = getattr(error, "reason", None) or error
            if isinstance(cause, urllib3.exceptions.SSLError):
                raise ShardError(f"{self.name}: {public_name(str(cause))}") from None
            server = self.server if isinstance(cause, _NOT_REACHED) else None
            raise PassingFault(f"{self.name}: {public_name(_in_words(cause))}", server=server) from None

    def _tell_redirects(self, answer) -> None:
        """Warns if another host answers. urllib3 sends no user, password or cookie to it."""
        hosts = [urlsplit(step.redirect_location or "").netloc for step in answer.retries.history if answer.retries]
        others = [host for host in hosts if host and host.rpartition("@")[2] != self.server.partition("://")[2]]
        if others:
            warnings.warn(
                f"{self.server} redirects to {public_name(others[-1].rpartition('@')[2])}; user and password are not"
                " sent there",
                stacklevel=3,
            )

    def _refuse(self, status: int, answer) -> None:
        said = f"{self.name}: the server answered {status} {answer.reason or ''}".rstrip()
        if status in _GONE:
            raise FileNotFoundError(said)
        if status in _PASSING:
            wait = answer.headers.get("Retry-After", "")
            raise PassingFault(said, float(wait) if wait.isdigit() else 0.0)
        raise ShardError(said)


def _leave(answer) -> None:
    """Closes a connection with unread bytes; keeps others for the next request."""
    if answer.length_remaining == 0:
        answer.drain_conn()
        return
    answer.close()
    answer.release_conn()


@functools.lru_cache(maxsize=2)
def _pool(process: int, proxy: str | None):
    """Keeps connections for reuse. The process number is a key, so that a forked process does not share them."""
    if proxy:
        return urllib3.ProxyManager(proxy, num_pools=_POOLS, maxsize=_CONNECTIONS)
    return urllib3.PoolManager(num_pools=_POOLS, maxsize=_CONNECTIONS)


def _proxy(url: str) -> str | None:
    """The proxy from the environment, as other programs use it."""
    parts = urlsplit(url)
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme.lower())


def _stat(answer, length: str | None) -> Stat:
    return Stat(int(length) if length and length.isdigit() else None, _tag(answer), _checksum(answer.headers))


def _tag(answer) -> str | None:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified")


def _checksum(headers) -> tuple[str, str] | None:
    """(algorithm, hexadecimal) of the whole file: Content-MD5, Repr-Digest (RFC 9530), Google's and Amazon's headers.

    An ETag is no checksum: for a file uploaded in parts, Amazon's is computed from the parts.
    """
    stated = {"md5": headers.get("Content-MD5"), "sha256": headers.get("x-amz-checksum-sha256")}
    for part in (headers.get("x-goog-hash") or "").split(","):
        if part.strip().startswith("md5="):
            stated["md5"] = part.strip()[4:]
    digest = re.search(r"sha-256=:([^:]+):", headers.get("Repr-Digest") or "")
    stated["sha256"] = digest.group(1) if digest else stated["sha256"]
    for algorithm, text in stated.items():
        try:
            if text:
                return algorithm, base64.b64decode(text, validate=True).hex()
        except binascii.Error:  # Amazon's checksum of parts ends with a count
            continue
    return None


def _starts_at(answer, offset: int) -> bool:
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return answer.status == 206 and match is not None and int(match.group(1)) == offset


def _in_words(cause: Exception) -> str:
    if isinstance(cause, urllib3.exceptions.TimeoutError) and not isinstance(
        cause, urllib3.exceptions.NewConnectionError
    ):
        return "no byte in time"
    return re.sub(r"^.*?(Failed to|\[Errno)", r"\1", str(cause)) or type(cause).__name__

"""Shards in object stores and file systems that fsspec knows: s3://, gs://, hf://, az://, memory://, …"""

import base64
import contextlib
import threading
from typing import BinaryIO

from a2mim.data.access import Access
from a2mim.data.errors import ShardError
from a2mim.data.remote.addresses import public_name, scheme_of
from a2mim.data.remote.retry import PassingFault
from a2mim.data.remote.transfer import BLOCK, Stat, Watch, append, refuse_another

_LASTING = (PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)

_TAGS = ("ETag", "etag", "xet_hash", "oid", "LastModified", "last_modified", "mtime", "created")  # the backends' names
_BLOCK = 4 * BLOCK  # bytes per request; a request must finish within one timeout


class StoredObject:
    """One address. fsspec guarantees no timeouts, so each call runs in a thread that can be abandoned."""

    ranges = True
    tag: str | None = None

    def __init__(self, address: str, access: Access):
        self.name, self.timeout = public_name(address), access.timeout
        self.files, self.path = _file_system(address, access)

    def stat(self) -> Stat:
        info = self._call(lambda: self.files.info(self.path))
        if info.get("type") == "directory":
            raise FileNotFoundError(f"{self.name}: this is a folder")
        tag = next((str(info[name]) for name in _TAGS if info.get(name)), None)
        digest = info.get("content_md5") or info.get("md5Hash")
        return Stat(info.get("size"), tag, _md5(digest))

    def download(self, file: BinaryIO) -> None:
        """Continues at the end of the file."""
        if self.tag:
            refuse_another(self.name, self.tag, self.stat().tag)
        opened = self._call(lambda: self.files.open(self.path, "rb", block_size=_BLOCK, cache_type="readahead"))
        try:
            if file.tell():
                self._call(lambda: opened.seek(file.tell()))
            append(file, lambda: self._call(lambda: opened.read(_BLOCK)), Watch(self.name, self.timeout))
        finally:
            with contextlib.suppress(PassingFault, OSError):
                self._call(opened.close)

    def read(self, offset: int, size: int) -> bytes:
        data = self._call(lambda: self.files.cat_file(self.path, start=offset, end=offset + size))
        if len(data) != size:
            raise PassingFault(f"{self.name}: {len(data)} of {size} bytes came at byte {offset}")
        return data

    def _call(self, work):
        """The result of `work`; PassingFault if it takes longer than the timeout."""
        try:
            return within(self.timeout, work)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.name}: there is no such object") from None
        except _LASTING as error:
            raise ShardError(f"{self.name}: {public_name(str(error)) or type(error).__name__}") from None
        except TimeoutError:
            raise PassingFault(f"{self.name}: no answer in time") from None
        except Exception as error:  # each backend has its own errors
            status = getattr(error, "status", None) or getattr(error, "code", None)
            said = f"{self.name}: {type(error).__name__}: {public_name(str(error))}"
            if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
                raise ShardError(said) from None
            raise PassingFault(said) from None


def within(timeout: float, work):
    """The result of `work()`, run in a thread. If it takes longer, raises TimeoutError and abandons the thread."""
    outcome = {}

    def run() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise TimeoutError
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def glob(pattern: str, access: Access) -> list[str]:
    """The addresses that match a pattern, sorted."""
    files, path = _file_system(pattern, access)
    try:
        matches = within(4 * access.timeout, lambda: files.glob(path))
    except TimeoutError:
        raise ShardError(f"{public_name(pattern)}: no answer in time") from None
    slashes = "://" if ":///" in pattern else ":///"  # spells each address like the pattern, so that it is unique
    return sorted(files.unstrip_protocol(match).replace(slashes, "://") for match in matches)


def _file_system(address: str, access: Access):
    """(file system, path in it); ValueError names the package to install, or what is wrong with the address."""
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations, registry

    scheme, name = scheme_of(address), public_name(address)
    if "::" in address:
        raise ValueError(f"{name}: chained addresses are not supported; give them one by one")
    if scheme not in registry and scheme not in known_implementations:
        raise ValueError(f"{name}: {scheme}:// is not known; give a path, http(s)://, s3://, gs://, hf:// or pipe:")
    try:
        return url_to_fs(address, **access.storage_options)
    except ImportError as error:
        module = known_implementations[scheme]["class"].partition(".")[0]
        package = module if module != "fsspec" else getattr(error.__cause__, "name", None) or scheme
        raise ValueError(f"{name}: reading {scheme}:// needs one more package: pip install {package}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} cannot be opened: {public_name(str(error))}") from None


def _md5(digest) -> tuple[str, str] | None:
    """MD5 of Google and Azure, which is base64 or bytes, in hexadecimal."""
    if isinstance(digest, str):
        with contextlib.suppress(ValueError):
            digest = base64.b64decode(digest, validate=True)
    return ("md5", bytes(digest).hex()) if isinstance(digest, bytes | bytearray) and len(digest) == 16 else None

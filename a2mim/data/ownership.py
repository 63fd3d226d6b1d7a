"""Whether a run's folder was begun by this account, so that the addresses in it may be contacted again.

A folder that was copied or received can name any address as its data. Whoever starts a run on such data leaves a mark
in its folder: a keyed hash of the sources. The key lies in this account's cache folder, readable by its owner alone,
and never leaves it. So nobody else can make the mark, and it fits no other sources than those that it was made for.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from a2mim.data.access import cache_folder
from a2mim.data.remote.addresses import public_name
from a2mim.data.request import recordable
from a2mim.data.sources import address_in
from a2mim.files import read_text, write_private

MARK, KEY = ".owner", "owner.key"
SOURCES = ("data", "test_data")  # of a request
_KEY_BYTES = 32


def mark_own(folder: Path, request: dict[str, Any]) -> None:
    """Leaves the mark for a request whose sources lead to other machines; removes it where none does."""
    key = _key(create=True) if _addresses(request) else None
    if key is None:
        (folder / MARK).unlink(missing_ok=True)
    else:
        write_private(folder / MARK, _sign(key, request) + "\n")


def refuse_foreign_addresses(folder: Path, recalled: dict[str, Any], typed: dict[str, Any]) -> None:
    """Checks the sources that a run's folder brings, before one of them is opened.

    Args:
        recalled: the request as the folder stores it.
        typed: the sources that the user named now; these may be any.

    Raises:
        ValueError: the folder names an address, and has no mark of this account for it.
    """
    brought = {key: recalled.get(key) for key in SOURCES if typed.get(key) is None}
    addresses = _addresses(brought)
    if not addresses or _is_marked(folder, recalled):
        return
    flags = " and ".join(f"--{key.replace('_', '-')}" for key in addresses)
    raise ValueError(
        f"{folder} takes its data from {public_name(next(iter(addresses.values())))}, and this account did not begin"
        f" that run: a run's folder may not choose an address to contact. If you trust it, say where the data are with"
        f" {flags}"
    )


def _addresses(request: dict[str, Any]) -> dict[str, str]:
    """The first address that each source leads to; sources on this machine are left out."""
    found = {key: address_in(request.get(key)) for key in SOURCES}
    return {key: address for key, address in found.items() if address is not None}


def _is_marked(folder: Path, request: dict[str, Any]) -> bool:
    key = _key(create=False)
    with contextlib.suppress(OSError, ValueError):
        return key is not None and hmac.compare_digest(read_text(folder / MARK).strip(), _sign(key, request))
    return False


def _sign(key: bytes, request: dict[str, Any]) -> str:
    plain = recordable(request)
    sources = json.dumps([plain.get(name) for name in SOURCES])
    return hmac.new(key, sources.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _key(create: bool) -> bytes | None:
    """This account's key; None where there is none and none can be made, or where others can read it."""
    path = cache_folder() / KEY
    if create:
        with contextlib.suppress(OSError):  # it is there, or the folder cannot be written to
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(_KEY_BYTES))
    with contextlib.suppress(OSError, ValueError):
        status = path.lstat()
        own = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o077)
        key = bytes.fromhex(read_text(path)) if own else b""
        return key if len(key) == _KEY_BYTES else None
    return None

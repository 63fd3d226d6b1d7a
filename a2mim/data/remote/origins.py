"""Origins: the sources of bytes that are not local files (http(s), object stores of fsspec, the output of a command).

An origin belongs to one address. It has `name` (for messages, without a password), `ranges` (whether parts can be read)
and three methods:

- `stat()`: a Stat; FileNotFoundError if the server has no such file;
- `download(file)`: appends the bytes that `file`, open for writing, lacks;
- `read(offset, size)`: exactly these bytes.

If `tag` is set, only content with this tag is accepted. All methods raise PassingFault if another attempt may help, and
ShardError if not. None waits longer than `access.timeout`.
"""

from a2mim.data.access import Access
from a2mim.data.remote.addresses import scheme_of
from a2mim.data.remote.object_stores import StoredObject
from a2mim.data.remote.pipes import Pipe
from a2mim.data.remote.transfer import Stat
from a2mim.data.remote.web import WebFile


def origin_of(address: str, access: Access, stat: Stat | None = None):
    """The origin of a remote address; ValueError if the address is not allowed or not known.

    Args:
        stat: the expected size and tag; ShardError if they have changed, as far as the server reports them.
    """
    origin = _origin(address, access)
    origin.tag = stat.tag if stat else None
    return origin


def _origin(address: str, access: Access):
    if address.startswith("pipe:"):
        return Pipe(address, access)
    if scheme_of(address) in ("http", "https"):
        return WebFile(address, access)
    return StoredObject(address, access)

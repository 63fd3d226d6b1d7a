"""What is not a local file: http(s), the object stores that fsspec knows, and the output of a command.

An origin answers for one address. It has `name` (for messages, without a password), `ranges` (whether parts can be
read) and three methods:

- `stat()`: a Stat; FileNotFoundError when the place has no such thing;
- `download(file)`: appends what `file`, open for writing, does not have yet;
- `read(offset, size)`: exactly these bytes.

`tag`, where it is set, is the one of the content that is wanted. All raise PassingFault where another attempt may help
and ShardError where not; none waits longer than `access.timeout`.
"""

from a2mim.data.access import Access
from a2mim.data.remote.addresses import scheme_of
from a2mim.data.remote.object_stores import StoredObject
from a2mim.data.remote.pipes import Pipe
from a2mim.data.remote.transfer import Stat
from a2mim.data.remote.web import WebFile


def origin_of(address: str, access: Access, stat: Stat | None = None):
    """Who answers for a remote address; ValueError when it may not or cannot be asked.

    Args:
        stat: what is expected there; ShardError when it has changed, where the answers tell.
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

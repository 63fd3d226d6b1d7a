"""How data is reached: permissions, the cache for remote data, time-outs and credentials."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REMOTE = ("auto", "shards", "ranges")


@dataclass(frozen=True)
class Access:
    """Where bytes come from. These choices never change which images are used or their order.

    Args:
        allow_pipe: allow a `pipe:` source to run its command in a shell.
        skip_bad_shards: leave out shards that are missing or damaged, and report them. False: refuse to start.
        cache_dir: folder for copies of remote shards and for indices; None: a2mim/ in the user's cache folder.
        cache_bytes: greatest size of the cached shards in bytes. Shards that were unused for longest are removed first.
        remote: "shards" downloads whole shards into the cache; "ranges" requests each image by its byte range; "auto"
            is "shards" when all shards fit into the cache together, else "ranges".
        timeout: seconds after which a transfer is given up when no byte arrived, or less than 1 kB per second.
        tries: attempts after errors that may be temporary.
        first_wait: seconds before the second attempt; doubled for each further attempt, at most 30.
        processes: number of processes that index, check and write shards; None: one for each core.
        storage_options: options of fsspec's file system, such as key, secret, token and endpoint_url for s3://. They
            stay in memory and are never printed or written.

    Examples:
        >>> access = a2mim.Access(skip_bad_shards=True)
        >>> len(a2mim.open_dataset("photographs", access=access))
        16
    """

    allow_pipe: bool = False
    skip_bad_shards: bool = False
    cache_dir: str | os.PathLike | None = None
    cache_bytes: int = 100 << 30
    remote: str = "auto"
    timeout: float = 30.0
    tries: int = 6
    first_wait: float = 0.5
    processes: int | None = None
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.remote not in REMOTE:
            raise ValueError(f"remote={self.remote!r} is unknown; choose one of {', '.join(REMOTE)}")
        for name, least in (("cache_bytes", 1), ("tries", 1), ("timeout", 1e-3), ("first_wait", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes={self.processes} must be at least 1")

    @property
    def folder(self) -> Path:
        """Folder for copies of remote shards, and for indices that cannot be written beside their shard."""
        return Path(self.cache_dir) if self.cache_dir else cache_folder()

    @property
    def workers(self) -> int:
        """Number of processes that index, check and write shards."""
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # macOS has none
        return self.processes or max(1, (usable or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


DEFAULT = Access()


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "a2mim"

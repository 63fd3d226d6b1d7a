"""How data is reached: what the user allows, where copies are kept, how long a silent server is waited for."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REMOTE = ("auto", "shards", "ranges")


@dataclass(frozen=True)
class Access:
    """Choices that change where bytes come from and never which image is which.

    Args:
        allow_pipe: run the command of a `pipe:` source in a shell.
        skip_bad_shards: leave out shards that are missing or damaged, counted and named, instead of refusing to start.
        cache_dir: where remote shards and their indices are kept; None: a2mim/ in the user's cache folder.
        cache_bytes: of remote shards kept there, at most; the one unused for longest goes first.
        remote: "shards" fetches whole shards into the cache, "ranges" asks for each image by its byte range, "auto" is
            "shards" when all of them fit into the cache together.
        timeout: seconds without a byte, or at less than 1 kB a second, after which a transfer is given up.
        tries: attempts at whatever waiting may mend.
        first_wait: seconds before the second attempt; doubled for each further one, at most 30.
        processes: that index, check and write shards; None: one for each core.
        storage_options: what fsspec's file system takes, such as key, secret, token and endpoint_url for s3://; kept in
            memory only, never printed or written.
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
        """Where copies of remote shards, and indices that cannot lie beside their shard, are kept."""
        return Path(self.cache_dir) if self.cache_dir else cache_folder()

    @property
    def workers(self) -> int:
        """Processes that index, check and write shards."""
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on a Mac
        return self.processes or max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


DEFAULT = Access()


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "a2mim"

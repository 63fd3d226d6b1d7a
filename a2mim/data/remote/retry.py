"""Tries again if waiting may help, and gives up with one sentence if not."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from a2mim.data.access import Access
from a2mim.data.errors import ShardError

LONGEST_WAIT = 30.0  # seconds, also if a server asks for more
A_STEP_FORWARD = 1 << 20  # bytes; an attempt that transferred so much more does not count as failed
Result = TypeVar("Result")


_unreachable: dict[str, tuple[float, str]] = {}  # server -> (time when it was given up, the message)


class PassingFault(OSError):
    """A fault that may be gone at the next attempt.

    Args:
        wait: seconds that the server asked for.
        server: the server, if it could not be reached.
    """

    def __init__(self, message: str, wait: float = 0.0, server: str | None = None):
        super().__init__(message)
        self.wait, self.server = wait, server


def refuse_unreachable(server: str, name: str, timeout: float) -> None:
    """ShardError if this process gave the server up less than a timeout ago, so that 1,000 shards wait only once."""
    when, said = _unreachable.get(server, (-float("inf"), ""))
    if time.monotonic() - when < timeout:
        raise ShardError(f"{name}: not requested, because {server} was given up a moment ago: {said}")


def persist(attempt: Callable[[], Result], access: Access, reached: Callable[[], int] | None = None) -> Result:
    """The result of the first attempt that succeeds; ShardError after `access.tries` failed ones.

    Args:
        reached: bytes transferred so far; an attempt that made progress does not count as failed.
    """
    failed, best = 0, reached() if reached else 0
    while True:
        try:
            return attempt()
        except PassingFault as fault:
            now = reached() if reached else 0
            failed = 1 if now >= best + A_STEP_FORWARD else failed + 1
            best = max(best, now)
            if failed >= access.tries:
                if fault.server:
                    _unreachable[fault.server] = time.monotonic(), str(fault)
                raise ShardError(f"{fault}, after {failed} attempts") from None
            wait = max(fault.wait, access.first_wait * 2 ** (failed - 1)) * random.uniform(0.75, 1.25)
            time.sleep(min(wait, LONGEST_WAIT))

"""Trying again where waiting may help, and giving up in one sentence where it does not."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from a2mim.data.access import Access
from a2mim.data.errors import ShardError

LONGEST_WAIT = 30.0  # seconds, also when a server asks for more
A_STEP_FORWARD = 1 << 20  # bytes; an attempt that got so much further does not count as failed
Result = TypeVar("Result")


class PassingFault(OSError):
    """May be gone at the next attempt; `wait`: seconds that the server asked for."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait


def persist(attempt: Callable[[], Result], access: Access, reached: Callable[[], int] | None = None) -> Result:
    """The result of the first attempt that does not raise PassingFault; ShardError after `access.tries` of them.

    Args:
        reached: how far a transfer has come, in bytes; attempts that get on are not counted.
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
                raise ShardError(f"{fault}, after {failed} attempts") from None
            wait = max(fault.wait, access.first_wait * 2 ** (failed - 1)) * random.uniform(0.75, 1.25)
            time.sleep(min(wait, LONGEST_WAIT))

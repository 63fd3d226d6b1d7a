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


_unreachable: dict[str, tuple[float, str]] = {}  # server -> (when it was given up, what was said)


class PassingFault(OSError):
    """May be gone at the next attempt.

    Args:
        wait: seconds that the server asked for.
        server: the one that could not be reached, where that is what is wrong.
    """

    def __init__(self, message: str, wait: float = 0.0, server: str | None = None):
        super().__init__(message)
        self.wait, self.server = wait, server


def refuse_unreachable(server: str, name: str, timeout: float) -> None:
    """ShardError when this process has given the server up within a timeout: a thousand shards wait for it once."""
    when, said = _unreachable.get(server, (-float("inf"), ""))
    if time.monotonic() - when < timeout:
        raise ShardError(f"{name}: not asked for, as {server} was given up a moment ago: {said}")


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
                if fault.server:
                    _unreachable[fault.server] = time.monotonic(), str(fault)
                raise ShardError(f"{fault}, after {failed} attempts") from None
            wait = max(fault.wait, access.first_wait * 2 ** (failed - 1)) * random.uniform(0.75, 1.25)
            time.sleep(min(wait, LONGEST_WAIT))

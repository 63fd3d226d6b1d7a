"""Work that other processes import by name, which they can only from a module on their path."""

import os
import signal


def double(number: int) -> tuple[int, int]:
    print("what libraries print does not disturb the answers")
    return 2 * number, os.getpid()


def fail(number: int) -> int:
    if number == 2:
        raise OSError(5, "told apart")
    return number


def die_elsewhere(item: tuple[int, int]) -> int:
    if item[0] == 1 and os.getpid() != item[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return item[0]


def unpicklable(number: int):
    return lambda: number

"""Starts work before its result is needed, in threads that end with the process."""

import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

MOST = 4096  # results that wait; the oldest are dropped, so that results that nobody takes cannot fill the memory


class ReadAhead:
    """Results by key.

    Each call passes its work, a function from a key to its result. It is not stored: an owner whose method is the work
    would form a reference cycle with its ReadAhead.

    Args:
        threads: number of results that are computed at once.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self._process: int | None = None

    def ask(self, key: Hashable, work: Callable) -> None:
        """Starts the work, unless it was requested already."""
        self._start()
        with self._lock:
            if key in self._waiting:
                return
            self._waiting[key] = waiting = _Result(key)
            if len(self._waiting) > MOST:
                self._waiting.popitem(last=False)
        self._requests.put((waiting, work))

    def take(self, key: Hashable, work: Callable):
        """The result, or the error that the work raised. Does the work now if it was not requested."""
        if self._process != os.getpid():
            return work(key)
        with self._lock:
            waiting = self._waiting.pop(key, None)
        if waiting is None:
            return work(key)
        waiting.ready.wait()
        if waiting.error is not None:
            raise waiting.error
        return waiting.value

    def _start(self) -> None:
        """Starts the threads. They do not survive a fork, so a forked process starts its own, with no requests."""
        if self._process == os.getpid():
            return
        self._process, self._lock = os.getpid(), threading.Lock()
        self._waiting: OrderedDict[Hashable, _Result] = OrderedDict()
        self._requests: queue.SimpleQueue[tuple[_Result, Callable] | None] = queue.SimpleQueue()
        for _ in range(self.threads):
            threading.Thread(target=_serve, args=(self._requests,), daemon=True).start()

    def close(self) -> None:
        """Lets the threads end after the requested work."""
        if self._process == os.getpid():
            for _ in range(self.threads):
                self._requests.put(None)
            self._process = None

    def __del__(self):
        self.close()

    def __getstate__(self) -> dict:
        return {"threads": self.threads, "_process": None}


class _Result:
    def __init__(self, key: Hashable):
        self.key, self.ready, self.value, self.error = key, threading.Event(), None, None


def _serve(requests: queue.SimpleQueue) -> None:
    while (request := requests.get()) is not None:
        waiting, work = request
        try:
            waiting.value = work(waiting.key)
        except BaseException as error:
            waiting.error = error
        waiting.ready.set()
        del request, waiting, work  # an idle thread must not keep objects alive

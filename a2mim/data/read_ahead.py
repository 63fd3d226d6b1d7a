"""Work begun before its result is wanted, in threads that end with the process."""

import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

MOST = 4096  # results that wait; the oldest are forgotten: what nobody takes must not fill the memory


class ReadAhead:
    """Results by key. The work, from a key to its result, is handed in with each call and not kept: whoever has a
    ReadAhead and its methods for work would be in a cycle.

    Args:
        threads: how many pieces of work are under way at once.
    """

    def __init__(self, threads: int):
        self.threads, self._process = threads, None

    def ask(self, key: Hashable, work: Callable) -> None:
        """Begins the work, unless it has been asked for already."""
        self._start()
        with self._lock:
            if key in self._waiting:
                return
            self._waiting[key] = waiting = _Result(key)
            if len(self._waiting) > MOST:
                self._waiting.popitem(last=False)
        self._asked.put((waiting, work))

    def take(self, key: Hashable, work: Callable):
        """The result, or the error that the work raised; works here and now when it was not asked for."""
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
        """Threads do not survive a fork: a forked process begins with none, and nothing asked for."""
        if self._process == os.getpid():
            return
        self._process, self._lock = os.getpid(), threading.Lock()
        self._waiting, self._asked = OrderedDict(), queue.SimpleQueue()
        for _ in range(self.threads):
            threading.Thread(target=_serve, args=(self._asked,), daemon=True).start()

    def close(self) -> None:
        """Lets the threads end when they have done what was asked."""
        if self._process == os.getpid():
            for _ in range(self.threads):
                self._asked.put(None)
            self._process = None

    def __del__(self):
        self.close()

    def __getstate__(self) -> dict:
        return {"threads": self.threads, "_process": None}


class _Result:
    def __init__(self, key: Hashable):
        self.key, self.ready, self.value, self.error = key, threading.Event(), None, None


def _serve(asked: queue.SimpleQueue) -> None:
    while (found := asked.get()) is not None:
        waiting, work = found
        try:
            waiting.value = work(waiting.key)
        except BaseException as error:
            waiting.error = error
        waiting.ready.set()
        del found, waiting, work  # an idle thread keeps nothing alive

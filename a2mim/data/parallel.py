"""Runs work over shards in fresh processes.

A forked process inherits the locks of threads, and a spawned one runs the user's script again. These processes are
started as `python -m a2mim.data.parallel` instead. They import only the function they are given, and answer through a
pipe.
"""

import contextlib
import importlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[2])
_END = object()


def each(work: Callable, items: Iterable, processes: int) -> Iterator[tuple]:
    """Yields (item, result or exception) of `work(item)` for every item, in the order of completion.

    Args:
        work: a function at the top level of a module. With one process or one item, it is called in this process.
        items: picklable, as are the results.

    If a process dies, its item is done again in this process, where the error is visible.
    """
    items = list(items)
    if min(processes, len(items)) < 2:
        for item in items:
            yield item, _outcome(work, item)
        return
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()
    running: list[subprocess.Popen] = []
    for item in items:
        waiting.put(item)
    threads = [
        threading.Thread(target=_feed, args=(work, waiting, done, running), daemon=True)
        for _ in range(min(processes, len(items)))
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in items:
            item, outcome = done.get()
            yield item, _outcome(work, item) if outcome is _END else outcome
    finally:
        while not waiting.empty():
            waiting.get()
        for process in running:
            process.kill()
        for thread in threads:
            thread.join()


def _feed(work: Callable, waiting, done, running: list) -> None:
    """Starts one process and gives it item after item."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([_ROOT, *filter(None, sys.path)]),
    }
    name = f"{work.__module__}:{work.__name__}"
    command = [sys.executable, "-m", "a2mim.data.parallel", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        running.append(process)
        while True:
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                break
            try:
                pickle.dump(item, process.stdin)
                process.stdin.flush()
                outcome = pickle.load(process.stdout)
            except (OSError, EOFError, pickle.UnpicklingError):
                outcome = _END
            done.put((item, outcome))
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _outcome(work: Callable, item):
    try:
        return work(item)
    except Exception as error:
        return error


def _serve(name: str) -> None:
    """Answers on the pipe that was stdout. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, _, function = name.partition(":")
    work = getattr(importlib.import_module(module), function)
    while True:
        try:
            item = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        outcome = _outcome(work, item)
        try:
            answer = pickle.dumps(outcome)
        except Exception:
            answer = pickle.dumps(RuntimeError(f"{type(outcome).__name__}: {outcome}"))
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
